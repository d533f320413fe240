//! Options of the PTX compiler: log buffers are filled; what would steer machine code has no meaning here.

use std::ffi::c_uint;
use std::time::Instant;

use crate::errors::{Answer, Code};
use crate::types::{In, Out};

const WALL_TIME: c_uint = 2;
const INFO_LOG: c_uint = 3;
const INFO_LOG_BYTES: c_uint = 4;
const ERROR_LOG: c_uint = 5;
const ERROR_LOG_BYTES: c_uint = 6;

/// A buffer of the caller, and where its size is told and the length of the text goes.
#[derive(Clone, Copy, Default)]
struct LogBuffer {
    buffer: usize,
    bytes: usize,
    size_at: Option<usize>,
}

/// The options of a load or link. The caller keeps its arrays while the call, for links until the end of the link.
pub struct JitOptions {
    values: Out<usize>,
    info: LogBuffer,
    error: LogBuffer,
    wall_time_at: Option<usize>,
    start: Instant,
}

// SAFETY: the caller's arrays are only touched inside its calls on the link, which it must not overlap.
unsafe impl Send for JitOptions {}

impl JitOptions {
    pub fn read(count: c_uint, options: In<c_uint>, values: Out<usize>) -> Answer<Self> {
        let mut read = Self {
            values,
            info: LogBuffer::default(),
            error: LogBuffer::default(),
            wall_time_at: None,
            start: Instant::now(),
        };
        for (index, option) in options.all(count as usize)?.into_iter().enumerate() {
            let value = In::<usize>::from_address(values.pointer() as usize).at(index)?;
            match option {
                WALL_TIME => read.wall_time_at = Some(index),
                INFO_LOG => read.info.buffer = value,
                // The low half: sizes are passed as unsigned int, cast to a pointer.
                INFO_LOG_BYTES => (read.info.bytes, read.info.size_at) = (value as u32 as usize, Some(index)),
                ERROR_LOG => read.error.buffer = value,
                ERROR_LOG_BYTES => (read.error.bytes, read.error.size_at) = (value as u32 as usize, Some(index)),
                _ => {}
            }
        }
        Ok(read)
    }

    /// Gives the outcome to the caller: the message of an error, an empty information log, the time.
    pub fn finish(&self, result: Result<(), (Code, String)>) -> Answer {
        self.fill(self.info, "");
        self.fill(self.error, result.as_ref().err().map_or("", |(_, message)| message));
        if let Some(index) = self.wall_time_at {
            // The option's value is a float that lies in the pointer's place.
            let milliseconds = self.start.elapsed().as_secs_f32() * 1e3;
            self.value(index).of::<f32>().put(milliseconds)?;
        }
        result.map_err(|(code, message)| {
            crate::options::log(|| message);
            code
        })
    }

    fn value(&self, index: usize) -> Out<usize> {
        self.values.at(index)
    }

    fn fill(&self, log: LogBuffer, text: &str) {
        let mut written = 0;
        if log.buffer != 0 && log.bytes > 0 {
            let mut bytes: Vec<u8> = text.bytes().take(log.bytes - 1).collect();
            written = bytes.len();
            bytes.push(0);
            let _ = Out::<u8>::from_address(log.buffer).put_all(&bytes);
        }
        if let Some(index) = log.size_at {
            self.value(index).put_if_wanted(written);
        }
    }
}
