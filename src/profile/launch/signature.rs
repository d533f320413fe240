//! What the kernels of a PTX file take: names, types and places of their parameters.
//!
//! Read from the text alone, so that it serves any device that loads it. This is no parser: whether the text is PTX is
//! the device's to say, and only the heads of `.entry` definitions are looked at.

/// A kernel's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    pub name: String,
    pub params: Vec<Parameter>,
    /// Bytes of all parameters, packed.
    pub bytes: usize,
}

/// A formal parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub kind: Kind,
    pub bytes: usize,
    /// Where it lies among the packed parameters.
    pub offset: usize,
    /// As declared: `.u64`, `.b8[12]`.
    pub declared: String,
}

/// How a parameter is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Integer,
    Float,
    /// `.b32` and the like: whatever fits.
    Bits,
    /// An array of bytes: a structure that is passed by value.
    Structure,
}

impl Parameter {
    /// True if it can be a pointer.
    pub fn may_be_pointer(&self) -> bool {
        self.bytes == 8 && matches!(self.kind, Kind::Integer | Kind::Bits)
    }
}

/// The kernels that are defined in a PTX text, in order.
pub fn signatures(text: &str) -> Vec<Signature> {
    let text = without_comments(text);
    let mut rest = text.as_str();
    let mut found = Vec::new();
    while let Some(at) = rest.find(".entry") {
        rest = &rest[at + ".entry".len()..];
        if rest.starts_with(char::is_whitespace)
            && let Some(signature) = head(rest)
        {
            found.push(signature);
        }
    }
    found
}

/// The architecture that a PTX text is for: 80 for `.target sm_80`.
pub fn target_architecture(text: &str) -> Option<u32> {
    let text = without_comments(text);
    let target = text.split(".target").nth(1)?.trim_start().strip_prefix("sm_")?;
    let digits = target.find(|character: char| !character.is_ascii_digit()).unwrap_or(target.len());
    target[..digits].parse().ok()
}

/// Comments and texts in quotes become blanks.
fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"']) {
        plain.push_str(&rest[..at]);
        let here = &rest[at..];
        // Where one does not end, all the rest is it.
        let length = if here.starts_with("//") {
            here.find('\n').unwrap_or(here.len())
        } else if let Some(comment) = here.strip_prefix("/*") {
            comment.find("*/").map_or(here.len(), |end| end + 4)
        } else if let Some(quoted) = here.strip_prefix('"') {
            quoted.find('"').map_or(here.len(), |end| end + 2)
        } else {
            1
        };
        plain.push(' ');
        rest = &here[length..];
    }
    plain + rest
}

/// Reads what follows `.entry`; none for a declaration without a body.
fn head(text: &str) -> Option<Signature> {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "_$%".contains(c))).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let rest = rest.trim_start();
    let (list, rest) = match rest.strip_prefix('(') {
        Some(inner) => inner.split_once(')')?,
        None => ("", rest),
    };
    if name.is_empty() || !rest[..rest.find([';', '{'])? + 1].ends_with('{') {
        return None;
    }
    let mut signature = Signature { name: name.into(), ..Signature::default() };
    for declaration in list.split(',').filter(|declaration| !declaration.trim().is_empty()) {
        let mut parameter = parameter(declaration)?;
        let (align, parameter) = (parameter.0.max(1), &mut parameter.1);
        parameter.offset = signature.bytes.checked_next_multiple_of(align)?;
        signature.bytes = parameter.offset.checked_add(parameter.bytes)?;
        signature.params.push(parameter.clone());
    }
    Some(signature)
}

/// Alignment and parameter of `.param .align 4 .b8 name[12]`, `.param .u64 .ptr .global .align 1 name`.
fn parameter(declaration: &str) -> Option<(usize, Parameter)> {
    let spaced = declaration.replace('[', " [ ").replace(']', " ] ");
    let mut words = spaced.split_whitespace();
    let (mut align, mut ty, mut name, mut length) = (None, None, None, None);
    let mut is_pointer = false;
    while let Some(word) = words.next() {
        match word {
            ".ptr" => is_pointer = true,
            ".align" => {
                let value = words.next()?.parse::<usize>().ok()?;
                // Behind .ptr it is the alignment of what is pointed to.
                if !is_pointer {
                    align = Some(value);
                }
            }
            "[" => {
                length = Some(words.next()?.parse::<usize>().ok()?);
                words.next();
            }
            _ if word.starts_with('.') => match scalar(word) {
                Some(scalar) => ty = Some((word, scalar)),
                None => continue,
            },
            _ => name = Some(word),
        }
    }
    let (declared, (kind, bytes)) = ty?;
    let parameter = Parameter {
        name: name?.into(),
        kind: if length.is_some() { Kind::Structure } else { kind },
        bytes: bytes.checked_mul(length.unwrap_or(1))?,
        offset: 0,
        declared: length.map_or(declared.into(), |length| format!("{declared}[{length}]")),
    };
    Some((align.unwrap_or(bytes), parameter))
}

fn scalar(word: &str) -> Option<(Kind, usize)> {
    let kind = match word.as_bytes().get(1)? {
        b'u' | b's' => Kind::Integer,
        b'f' => Kind::Float,
        b'b' => Kind::Bits,
        _ => return None,
    };
    let bits: usize = word[2..].parse().ok()?;
    matches!(bits, 8 | 16 | 32 | 64 | 128).then_some((kind, bits / 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::emulator::{DeviceFacts, Emulator};

    #[test]
    fn all_kernels_of_the_tests_have_the_heads_that_the_emulator_decodes() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator");
        let mut kernels = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "ptx") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(target_architecture(&text), Some(80));
            let module = Emulator::new(DeviceFacts::default()).load("k.ptx", &text).unwrap();
            let read = signatures(&text);
            assert_eq!(read.len(), module.kernels().count(), "{}", path.display());
            for (read, decoded) in read.iter().zip(module.kernels()) {
                assert_eq!((&read.name, read.bytes), (&decoded.name, decoded.param_bytes as usize));
                let places: Vec<_> = read.params.iter().map(|p| (p.offset, p.bytes)).collect();
                let decoded: Vec<_> = decoded.params.iter().map(|p| (p.offset as usize, p.bytes as usize)).collect();
                assert_eq!(places, decoded, "{}", read.name);
                kernels += 1;
            }
        }
        assert!(kernels >= 30, "{kernels}");
    }

    #[test]
    fn heads_of_every_shape_are_read() {
        let text = "// .entry no(.param .u32 x) {}\n.file 1 \"a.entry b\"\n.extern .entry declared (.param .u32 x);\n\
            .target sm_90a, debug\n.entry\tbare\n{ ret; }\n.visible .entry $full$(/* a, b */ .param .f32 scale,\n\
            .param .u64 .ptr .global .align 16 x, .param .align 4 .b8 big[12], .param .b16 h) .maxntid 32, 1, 1 { }";
        let found = signatures(text);
        assert_eq!(target_architecture(text), Some(90));
        assert_eq!(found.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["bare", "$full$"]);
        assert_eq!((found[0].params.len(), found[1].bytes), (0, 30));
        let params: Vec<_> =
            found[1].params.iter().map(|p| (p.name.as_str(), p.kind, p.offset, p.declared.as_str())).collect();
        let expected = [
            ("scale", Kind::Float, 0, ".f32"),
            ("x", Kind::Integer, 8, ".u64"),
            ("big", Kind::Structure, 16, ".b8[12]"),
            ("h", Kind::Bits, 28, ".b16"),
        ];
        assert_eq!(params, expected);
        assert!(found[1].params[1].may_be_pointer() && !found[1].params[0].may_be_pointer());
    }

    #[test]
    fn broken_text_is_read_without_a_panic() {
        let text = ".visible .entry k(.param .align 4 .b8 p[12], .param .u64 é) /* x */ { \"a\" // y\n}";
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            for start in (0..end).filter(|&start| text.is_char_boundary(start)) {
                signatures(&text[start..end]);
                target_architecture(&text[start..end]);
            }
        }
        assert!(signatures(".entry k(.param .b64 p[18446744073709551615]) {").is_empty());
    }
}
