//! What a program brings as a module: PTX text, or a container to look for PTX in.
//!
//! The emulator executes PTX. Machine code (a cubin, an ELF file) is recognised and refused. A fat binary, as nvcc embeds
//! it, is searched for the newest PTX that the device takes; its entries may be packed, with LZ4 by
//! older and with zstd by newer ones.

use std::io::Read;

use crate::errors::{Answer, Code, INVALID_IMAGE, NO_BINARY_FOR_GPU};
use crate::types::In;

/// PTX text, or why there is none: the code and the line for the log.
pub type Image = Result<String, (Code, String)>;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// The structure that registered fat binaries are passed by; the pointer to the binary is its third word.
const WRAPPER_MAGIC: u32 = 0x4662_43B1;
const FAT_MAGIC: u32 = 0xBA55_ED50;
const FAT_HEADER_BYTES: usize = 16;
const ENTRY_HEADER_BYTES: usize = 64;
const KIND_PTX: u16 = 1;
const PACKED_LZ4: u64 = 0x2000;
const PACKED_ZSTD: u64 = 0x8000;
/// Largest unpacked text that is believed: a size field beyond it is damage.
const MAX_TEXT_BYTES: usize = 1 << 30;
const USE_PTX: &str = "machine code (SASS) cannot be executed: bring PTX";

/// The PTX of an image in memory, whose size the interface does not tell.
pub fn at(pointer: In<u8>, architecture: u32) -> Answer<Image> {
    let first = pointer.bytes(4)?;
    let magic = u32::from_le_bytes([first[0], first[1], first[2], first[3]]);
    if magic == WRAPPER_MAGIC {
        let wrapper = pointer.bytes(16)?;
        let inner = In::from_address(u64_at(wrapper, 8) as usize);
        return Ok(fat_binary(fat_bytes(inner)?, architecture));
    }
    if magic == FAT_MAGIC {
        return Ok(fat_binary(fat_bytes(pointer)?, architecture));
    }
    // A text is read to its end only where it begins like one.
    if first == ELF_MAGIC || first.iter().take_while(|&&byte| byte != 0).any(|&byte| !is_text(byte)) {
        return Ok(of_bytes(first, architecture));
    }
    Ok(of_bytes(pointer.text()?, architecture))
}

/// The PTX of an image of known size.
pub fn of_bytes(bytes: &[u8], architecture: u32) -> Image {
    if bytes.starts_with(&ELF_MAGIC) {
        return Err((NO_BINARY_FOR_GPU, format!("the image is a cubin: {USE_PTX}")));
    }
    if bytes.starts_with(&FAT_MAGIC.to_le_bytes()) {
        return fat_binary(bytes, architecture);
    }
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    if text.is_empty() || text.iter().take(64).any(|&byte| !is_text(byte)) {
        return Err((INVALID_IMAGE, "the image is neither PTX text nor a fat binary with PTX".into()));
    }
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn is_text(byte: u8) -> bool {
    byte >= b' ' || byte.is_ascii_whitespace()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The whole of a fat binary, whose header tells its size.
fn fat_bytes<'a>(pointer: In<u8>) -> Answer<&'a [u8]> {
    let header = pointer.bytes(FAT_HEADER_BYTES)?;
    if u32_at(header, 0) != FAT_MAGIC {
        return Err(INVALID_IMAGE);
    }
    let bytes = usize::from(u16_at(header, 6)).saturating_add(u64_at(header, 8) as usize);
    if bytes > isize::MAX as usize { Err(INVALID_IMAGE) } else { pointer.bytes(bytes) }
}

/// The PTX entry for the newest architecture up to the device's.
fn fat_binary(bytes: &[u8], architecture: u32) -> Image {
    let mut at = usize::from(u16_at(bytes, 6));
    let mut best: Option<(u32, &[u8], &[u8])> = None;
    let mut others = 0;
    while let Some(entry) = bytes.get(at..).filter(|entry| entry.len() >= ENTRY_HEADER_BYTES) {
        let header_bytes = (u32_at(entry, 4) as usize).max(ENTRY_HEADER_BYTES);
        let size = u64_at(entry, 8) as usize;
        let Some(payload) = entry.get(header_bytes..).and_then(|rest| rest.get(..size)) else { break };
        let arch = u32_at(entry, 28);
        if u16_at(entry, 0) != KIND_PTX || arch > architecture {
            others += 1;
        } else if best.is_none_or(|(known, ..)| known < arch) {
            best = Some((arch, entry, payload));
        }
        at += header_bytes + size;
    }
    let Some((_, entry, payload)) = best else {
        return Err((
            NO_BINARY_FOR_GPU,
            format!("the fat binary has {others} entries, none of them PTX for sm_{architecture} or before: {USE_PTX}"),
        ));
    };
    let (flags, packed_bytes) = (u64_at(entry, 40), u32_at(entry, 16) as usize);
    let damaged = || (INVALID_IMAGE, "the fat binary's packed PTX is damaged".to_string());
    let (packed, unpacked_bytes) = (payload.get(..packed_bytes).ok_or_else(damaged), u64_at(entry, 56) as usize);
    let text = if flags & PACKED_ZSTD != 0 {
        unpack_zstd(packed?, unpacked_bytes).ok_or_else(damaged)?
    } else if flags & PACKED_LZ4 != 0 {
        unpack_lz4(packed?, unpacked_bytes).ok_or_else(damaged)?
    } else {
        payload.to_vec()
    };
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

/// Unpacks a zstd frame.
fn unpack_zstd(packed: &[u8], unpacked_bytes: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let frame = ruzstd::decoding::StreamingDecoder::new(packed).ok()?;
    // One byte more than there should be tells that there is more.
    frame.take(unpacked_bytes.min(MAX_TEXT_BYTES) as u64 + 1).read_to_end(&mut out).ok()?;
    (out.len() == unpacked_bytes).then_some(out)
}

/// Unpacks an LZ4 block: tokens of literal and match lengths, literals, 16-bit distances (the LZ4 block format).
fn unpack_lz4(packed: &[u8], unpacked_bytes: usize) -> Option<Vec<u8>> {
    const LEAST_MATCH: usize = 4;
    let mut out = Vec::with_capacity(unpacked_bytes.min(MAX_TEXT_BYTES));
    let mut bytes = packed.iter().copied();
    fn length(nibble: u8, bytes: &mut impl Iterator<Item = u8>) -> Option<usize> {
        let mut total = usize::from(nibble);
        if nibble == 15 {
            loop {
                let more = bytes.next()?;
                total += usize::from(more);
                if more != 255 {
                    break;
                }
            }
        }
        Some(total)
    }
    while let Some(token) = bytes.next() {
        for _ in 0..length(token >> 4, &mut bytes)? {
            out.push(bytes.next()?);
        }
        let Some(low) = bytes.next() else { break };
        let distance = usize::from(u16::from_le_bytes([low, bytes.next()?]));
        let count = length(token & 15, &mut bytes)? + LEAST_MATCH;
        let start = out.len().checked_sub(distance).filter(|_| distance > 0)?;
        if out.len() + count > unpacked_bytes.min(MAX_TEXT_BYTES) {
            return None;
        }
        for at in start..start + count {
            out.push(out[at]);
        }
    }
    Some(out)
}
