//! What the tests of every backend try: shapes, and ranges over their rows.

use super::Shape;
use crate::ops::testing::Random;

/// Single rows, sentences of odd lengths with gaps and empty ranges between them, one range of all rows, no rows.
pub fn cases(random: &mut Random) -> Vec<(Shape, Vec<i32>)> {
    // Rows, channels, and the longest range and the longest gap before it.
    let sizes = [(1, 1, 1, 0), (7, 3, 1, 2), (50, 113, 9, 0), (203, 64, 40, 5), (1023, 12, 1023, 0), (90, 260, 30, 8)];
    let mut cases = vec![(Shape { rows: 0, channels: 5, ranges: 2 }, vec![0, 0, 0, 0])];
    for (rows, channels, longest, gap) in sizes {
        let (mut ranges, mut row) = (vec![], 0);
        while row < rows {
            let first = row + random.below(gap + 1);
            row = first + if longest == rows { rows } else { 1 + random.below(longest) };
            if row <= rows {
                ranges.extend([first as i32, row as i32]);
            }
            if random.below(3) == 0 {
                ranges.extend([0, 0]);
            }
        }
        cases.push((Shape { rows, channels, ranges: ranges.len() / 2 }, ranges));
    }
    cases
}
