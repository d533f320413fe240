//! How far apart two names are, to tell somebody which name they probably meant.

/// Levenshtein's distance: insertions, deletions and substitutions that lead from one text to the other.
pub fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// The names, nearest to `wanted` first; equally near ones stay in their order. Case counts for nothing.
pub fn nearest_first(wanted: &str, names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort_by_cached_key(|name| edit_distance(&wanted.to_lowercase(), &name.to_lowercase()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits_and_the_nearest_name_comes_first() {
        for (from, to, edits) in [("", "", 0), ("text", "", 4), ("kitten", "sitting", 3), ("漢字", "漢", 1)] {
            assert_eq!((edit_distance(from, to), edit_distance(to, from)), (edits, edits));
        }
        let names = ["label", "text", "id"].map(String::from);
        assert_eq!(nearest_first("TXET", &names), ["text", "label", "id"]);
    }
}
