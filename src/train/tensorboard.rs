//! TensorBoard event files: scalars and texts of a run, in the format that `tensorboard --logdir` reads.
//!
//! A file is a sequence of TFRecords, each a protocol buffer `Event` between checksums:
//!
//! ```text
//! u64 length | u32 masked CRC32C of the length | the event | u32 masked CRC32C of the event       (little endian)
//! masked = rotate_right(crc, 15) + 0xA282EAD8
//! ```
//!
//! Only the handful of fields needed is encoded here (tensorflow/core/util/event.proto and framework/summary.proto).
//! A resumed run starts a file of its own; its first event tells TensorBoard to drop what older files hold from the
//! resumed step on.

use super::WriteError;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file being written.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts `events.out.tfevents.<time>.<host>.<pid>` in `folder`, for a run that has made `step` updates.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(folder: &Path, step: usize) -> Result<Self, WriteError> {
        let now = wall_time();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let host: String = host.trim().chars().filter(is_plain).collect();
        let host = if host.is_empty() { "localhost" } else { &host };
        let name = format!("events.out.tfevents.{:010}.{host}.{}", now as u64, std::process::id());
        let path = folder.join(name);
        let mut writer = match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => Self { path, file },
            Err(cause) => return Err(WriteError { path, cause }),
        };
        let mut version = event(now, 0);
        version.string(3, "brain.Event:2");
        // What is at this step or later is dropped, and the records of `step` itself are still true.
        let mut start = event(now, step + 1);
        start.message(7, |session| session.varint(1, SESSION_START));
        writer.write(&[record(&version.bytes), record(&start.bytes)].concat())?;
        Ok(writer)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds scalars after `step` updates, such as `("train/loss", 1.5)`.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system.
    pub fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<(), WriteError> {
        self.write(&record(&scalar_event(wall_time(), step, values)))
    }

    /// Adds a text, line breaks and all: TensorBoard takes texts for Markdown, so it goes in as a block of code.
    ///
    /// # Errors
    /// As [`EventWriter::scalars`].
    pub fn text(&mut self, step: usize, tag: &str, text: &str) -> Result<(), WriteError> {
        let block: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
        self.write(&record(&text_event(wall_time(), step, tag, &block.join("\n"))))
    }

    /// Whole records in one call, so that a killed process cannot leave two halves.
    fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.file.write_all(bytes).map_err(|cause: io::Error| WriteError { path: self.path.clone(), cause })
    }
}

/// `SessionLog.SessionStatus.START`.
const SESSION_START: u64 = 1;
/// `DataType.DT_STRING`.
const DT_STRING: u64 = 7;

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `Event { wall_time = 1, step = 2, ... }`.
fn event(wall_time: f64, step: usize) -> Message {
    let mut event = Message::default();
    event.fixed64(1, wall_time.to_bits());
    event.varint(2, step as u64);
    event
}

/// `Event.summary = 5 { repeated Value value = 1 { string tag = 1, float simple_value = 2 } }`.
fn scalar_event(wall_time: f64, step: usize, values: &[(&str, f64)]) -> Vec<u8> {
    let mut event = event(wall_time, step);
    event.message(5, |summary| {
        for (tag, value) in values {
            summary.message(1, |entry| {
                entry.string(1, tag);
                entry.fixed32(2, (*value as f32).to_bits());
            });
        }
    });
    event.bytes
}

/// A string tensor of one element, marked for the text plug-in.
fn text_event(wall_time: f64, step: usize, tag: &str, text: &str) -> Vec<u8> {
    let mut event = event(wall_time, step);
    event.message(5, |summary| {
        summary.message(1, |value| {
            value.string(1, tag);
            value.message(8, |tensor| {
                tensor.varint(1, DT_STRING);
                tensor.message(2, |shape| shape.message(2, |dimension| dimension.varint(1, 1)));
                tensor.string(8, text);
            });
            value.message(9, |metadata| metadata.message(1, |plugin| plugin.string(1, "text")));
        });
    });
    event.bytes
}

/// A protocol buffer message in the making: field number and wire type, then the value.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn fixed64(&mut self, field: u64, bits: u64) {
        self.raw_varint(field << 3 | 1);
        self.bytes.extend_from_slice(&bits.to_le_bytes());
    }

    fn fixed32(&mut self, field: u64, bits: u32) {
        self.raw_varint(field << 3 | 5);
        self.bytes.extend_from_slice(&bits.to_le_bytes());
    }

    fn string(&mut self, field: u64, text: &str) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.raw_varint(field << 3 | 2);
        self.raw_varint(inner.bytes.len() as u64);
        self.bytes.append(&mut inner.bytes);
    }
}

/// `data` as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_crc32c(data).to_le_bytes());
    record
}

fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// Castagnoli's CRC (RFC 3720), reflected polynomial 0x82F63B78, a byte at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut crc, mut bit) = (index as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_that_of_rfc_3720() {
        assert_eq!(crc32c(b""), 0);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    }

    #[test]
    fn varints_take_seven_bits_a_byte() {
        let encoded = |value| {
            let mut message = Message::default();
            message.raw_varint(value);
            message.bytes
        };
        assert_eq!(encoded(127), [0x7F]);
        assert_eq!(encoded(300), [0xAC, 0x02]);
        assert_eq!(encoded(u64::MAX).len(), 10);
    }

    /// The bytes that TensorBoard's own writer (tensorboard 2.21, `RecordWriter`) makes of the same event.
    #[test]
    fn a_scalar_record_is_byte_for_byte_that_of_tensorboard() {
        let event = scalar_event(1_700_000_000.25, 300, &[("train/loss", 2.5), ("lr", 0.001)]);
        let hex: String = record(&event).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "2c00000000000000f4aecc450900001040fc54d94110ac022a1e0a110a0a747261696e2f6c6f737315000020400a090a026c7215\
             6f12833a08897f3a"
        );
    }

    #[test]
    fn a_file_is_whole_records_that_start_with_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 7).unwrap();
        writer.scalars(8, &[("loss", f64::NAN)]).unwrap();
        writer.text(8, "sample", "some *text*").unwrap();
        let name = writer.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("events.out.tfevents.") && name.split('.').count() >= 6, "{name}");
        let bytes = std::fs::read(writer.path()).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let data = &rest[12..12 + length];
            assert_eq!(rest[..16 + length], record(data));
            events.push(data);
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 4);
        assert!(events[0].ends_with(b"brain.Event:2"));
        assert_eq!(&events[1][events[1].len() - 4..], [7 << 3 | 2, 2, 1 << 3, 1], "session log: start");
        assert!(events[3].windows(15).any(|bytes| bytes == b"    some *text*"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let message = EventWriter::create(Path::new("no/such/folder"), 0).unwrap_err().to_string();
        assert!(message.contains("no/such/folder/events.out.tfevents."), "{message}");
    }
}
