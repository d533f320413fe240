//! What Python's `str.split` and `str.strip` take for white space; all reference implementations are written in it.

/// Unicode's white space, and the four separators of ASCII that only Python counts as such.
pub(super) fn is_white_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}

/// The runs of other characters.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_white_space).filter(|word| !word.is_empty())
}
