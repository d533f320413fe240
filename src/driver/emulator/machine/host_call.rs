//! Functions that the driver gives to kernels: vprintf, __assertfail, malloc and free.

use super::access::{Nearby, Request, lanes_of};
use super::block::SharedMemory;
use super::observe::Observe;
use super::run::Worker;
use super::warp::Warp;
use super::{Outcome, Stopped};
use crate::decode::program::{AddressSpace, Call, HostFunction};
use crate::error::{Access, FaultKind};
use crate::lanes::LANES;

/// Longest string that is read from a kernel's memory.
const MAX_TEXT: usize = 64 << 10;
/// Most that a block may print: what goes beyond is dropped, as on a GPU whose buffer is full.
const MAX_OUTPUT: usize = 16 << 20;

impl<O: Observe> Worker<'_, O> {
    pub fn host_call(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        frame: u32,
        function: HostFunction,
        call: &Call,
        mask: u32,
    ) -> Outcome<()> {
        for lane in lanes_of(mask) {
            match function {
                HostFunction::Vprintf => {
                    let (format, list) =
                        (self.argument(warp, frame, call, 0, lane), self.argument(warp, frame, call, 1, lane));
                    let format = self.text(warp, shared, format, lane)?;
                    let printed = self.print(warp, shared, &format, list, lane)?;
                    self.set_result(warp, frame, call, lane, u64::from(printed));
                }
                HostFunction::AssertFail => {
                    let message = self.argument(warp, frame, call, 0, lane);
                    let file = self.argument(warp, frame, call, 1, lane);
                    let line = self.argument(warp, frame, call, 2, lane) as u32;
                    let name = self.argument(warp, frame, call, 3, lane);
                    let [message, file, name] =
                        [message, file, name].map(|address| self.text(warp, shared, address, lane));
                    let text =
                        |bytes: Outcome<Vec<u8>>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                    let message = format!("{} ({}:{line}, {})", text(message)?, text(file)?, text(name)?);
                    return Err(Stopped::new(FaultKind::Assertion(message), lane as u32));
                }
                HostFunction::Malloc => {
                    let bytes = self.argument(warp, frame, call, 0, lane);
                    let address = self.launch.memory.heap().and_then(|heap| heap.allocate(bytes));
                    if let Some(address) = address {
                        if let Some(written) = self.launch.memory.initialised(address) {
                            written.clear(address, bytes);
                        }
                        self.observer.allocated(address, bytes);
                    }
                    self.set_result(warp, frame, call, lane, address.unwrap_or(0));
                }
                HostFunction::Free => {
                    let address = self.argument(warp, frame, call, 0, lane);
                    let result = match self.launch.memory.heap() {
                        Some(heap) if address != 0 => heap.free(address),
                        _ => Ok(()),
                    };
                    if let Err(detail) = result {
                        return Err(Stopped::new(FaultKind::InvalidFree { address, detail }, lane as u32));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads up to 8 bytes at a generic address of a lane.
    fn peek(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        address: u64,
        bytes: u32,
        lane: usize,
    ) -> Outcome<u64> {
        let mut addresses = [address; LANES];
        let request = Request::new(AddressSpace::Generic, bytes, Access::Read);
        let mut nearby = Nearby { shared, local: &mut warp.local };
        let region = self.resolve(&mut nearby, request, &mut addresses, 1 << lane)?;
        let pointer = region.at(&addresses, lane);
        let mut word = [0u8; 8];
        // SAFETY: `resolve` checked these bytes, at most 8.
        unsafe { std::ptr::copy_nonoverlapping(pointer, word.as_mut_ptr(), bytes as usize) };
        Ok(u64::from_le_bytes(word))
    }

    fn text(&mut self, warp: &mut Warp, shared: &mut SharedMemory, address: u64, lane: usize) -> Outcome<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < MAX_TEXT {
            let byte = self.peek(warp, shared, address.wrapping_add(text.len() as u64), 1, lane)? as u8;
            if byte == 0 {
                break;
            }
            text.push(byte);
        }
        Ok(text)
    }

    /// printf with the arguments that lie, aligned to their sizes, at `list`. Returns how many there were.
    fn print(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        format: &[u8],
        list: u64,
        lane: usize,
    ) -> Outcome<u32> {
        let mut cursor = list;
        let mut count = 0;
        let mut at = 0;
        let mut out = Vec::new();
        while at < format.len() {
            if format[at] != b'%' {
                out.push(format[at]);
                at += 1;
                continue;
            }
            let Some(specifier) = Specifier::parse(&format[at + 1..]) else {
                out.push(b'%');
                at += 1;
                continue;
            };
            at += 1 + specifier.length;
            if specifier.conversion == b'%' {
                out.push(b'%');
                continue;
            }
            let mut next = |this: &mut Self, warp: &mut Warp, shared: &mut SharedMemory, bytes: u32| -> Outcome<u64> {
                cursor = cursor.next_multiple_of(u64::from(bytes));
                let value = this.peek(warp, shared, cursor, bytes, lane)?;
                cursor += u64::from(bytes);
                Ok(value)
            };
            let mut filled = specifier;
            if filled.width_is_argument {
                let width = next(self, warp, shared, 4)? as i32;
                (filled.is_left, filled.width) = (filled.is_left || width < 0, width.unsigned_abs() as usize);
            }
            if filled.precision_is_argument {
                filled.precision = usize::try_from(next(self, warp, shared, 4)? as i32).ok();
            }
            let bytes = if filled.is_long
                || matches!(filled.conversion, b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' | b's' | b'p')
            {
                8
            } else {
                4
            };
            let value = next(self, warp, shared, bytes)?;
            let text = if filled.conversion == b's' { self.text(warp, shared, value, lane)? } else { Vec::new() };
            filled.write(value, &text, &mut out);
            count += 1;
        }
        let room = MAX_OUTPUT.saturating_sub(self.output.len());
        out.truncate(room);
        self.output.extend_from_slice(&out);
        Ok(count)
    }
}

/// `%[flags][width][.precision][length]conversion`.
#[derive(Debug, Clone, Copy, Default)]
struct Specifier {
    /// Bytes after the percent sign.
    length: usize,
    is_left: bool,
    has_plus: bool,
    has_space: bool,
    has_zero: bool,
    is_alternative: bool,
    width: usize,
    width_is_argument: bool,
    precision: Option<usize>,
    precision_is_argument: bool,
    is_long: bool,
    conversion: u8,
}

/// Widest field: a wider one is a mistake, and would only cost memory.
const MAX_WIDTH: usize = 4096;

impl Specifier {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut s = Self::default();
        let byte = |at: usize| text.get(at).copied().unwrap_or(0);
        loop {
            match byte(s.length) {
                b'-' => s.is_left = true,
                b'+' => s.has_plus = true,
                b' ' => s.has_space = true,
                b'0' => s.has_zero = true,
                b'#' => s.is_alternative = true,
                _ => break,
            }
            s.length += 1;
        }
        let number = |length: &mut usize| {
            let mut value = 0usize;
            while byte(*length).is_ascii_digit() {
                value = (value * 10 + usize::from(byte(*length) - b'0')).min(MAX_WIDTH);
                *length += 1;
            }
            value
        };
        if byte(s.length) == b'*' {
            s.width_is_argument = true;
            s.length += 1;
        } else {
            s.width = number(&mut s.length);
        }
        if byte(s.length) == b'.' {
            s.length += 1;
            if byte(s.length) == b'*' {
                s.precision_is_argument = true;
                s.length += 1;
            } else {
                s.precision = Some(number(&mut s.length));
            }
        }
        while matches!(byte(s.length), b'l' | b'h' | b'z' | b'j' | b't' | b'L') {
            s.is_long |= matches!(byte(s.length), b'l' | b'z' | b'j' | b't');
            s.length += 1;
        }
        s.conversion = byte(s.length);
        s.length += 1;
        matches!(
            s.conversion,
            b'd' | b'i'
                | b'u'
                | b'x'
                | b'X'
                | b'o'
                | b'c'
                | b's'
                | b'p'
                | b'f'
                | b'F'
                | b'e'
                | b'E'
                | b'g'
                | b'G'
                | b'a'
                | b'A'
                | b'%'
        )
        .then_some(s)
    }

    fn write(&self, value: u64, text: &[u8], out: &mut Vec<u8>) {
        let unsigned = if self.is_long || self.conversion == b'p' { value } else { value & 0xFFFF_FFFF };
        let signed = if self.is_long { value as i64 } else { i64::from(value as i32) };
        let float = f64::from_bits(value);
        let digits = |text: String| match self.precision {
            Some(precision) => format!("{text:0>width$}", width = precision.min(MAX_WIDTH)),
            None => text,
        };
        let (sign, body) = match self.conversion {
            b'd' | b'i' => (self.sign(signed < 0), digits(signed.unsigned_abs().to_string()).into_bytes()),
            b'u' => ("", digits(unsigned.to_string()).into_bytes()),
            b'x' => (if self.is_alternative { "0x" } else { "" }, digits(format!("{unsigned:x}")).into_bytes()),
            b'X' => (if self.is_alternative { "0X" } else { "" }, digits(format!("{unsigned:X}")).into_bytes()),
            b'o' => ("", digits(format!("{unsigned:o}")).into_bytes()),
            b'p' if value == 0 => ("", b"(nil)".to_vec()),
            b'p' => ("0x", format!("{unsigned:x}").into_bytes()),
            b'c' => ("", vec![value as u8]),
            b's' => ("", text[..text.len().min(self.precision.unwrap_or(usize::MAX))].to_vec()),
            _ => (self.sign(float.is_sign_negative()), self.float(float.abs()).into_bytes()),
        };
        let width = self.width.min(MAX_WIDTH);
        let pad = width.saturating_sub(sign.len() + body.len());
        let is_number = !matches!(self.conversion, b'c' | b's' | b'p');
        let zero_pads = self.has_zero && !self.is_left && is_number && float_or_integer(self, float);
        if !self.is_left && !zero_pads {
            out.extend(std::iter::repeat_n(b' ', pad));
        }
        out.extend_from_slice(sign.as_bytes());
        if zero_pads {
            out.extend(std::iter::repeat_n(b'0', pad));
        }
        out.extend_from_slice(&body);
        if self.is_left {
            out.extend(std::iter::repeat_n(b' ', pad));
        }
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.has_plus, self.has_space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn float(&self, value: f64) -> String {
        let is_upper = self.conversion.is_ascii_uppercase();
        if !value.is_finite() {
            let text = if value.is_nan() { "nan" } else { "inf" };
            return if is_upper { text.to_uppercase() } else { text.into() };
        }
        let precision = self.precision.unwrap_or(6).min(1000);
        let exponential = |precision: usize| {
            let text = format!("{value:.precision$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        };
        let text = match self.conversion.to_ascii_lowercase() {
            b'f' => format!("{value:.precision$}"),
            b'e' => exponential(precision),
            b'a' => hexadecimal(value, self.precision),
            _ => {
                let precision = precision.max(1);
                let scientific = format!("{value:.p$e}", p = precision - 1);
                let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
                let text = if exponent < -4 || exponent >= precision as i32 {
                    exponential(precision - 1)
                } else {
                    format!("{value:.p$}", p = (precision as i32 - 1 - exponent).max(0) as usize)
                };
                if self.is_alternative { text } else { trim_zeros(&text) }
            }
        };
        if is_upper { text.to_uppercase() } else { text }
    }
}

/// Integers with a precision are not padded with zeros, nor are infinities.
fn float_or_integer(specifier: &Specifier, value: f64) -> bool {
    match specifier.conversion {
        b'd' | b'i' | b'u' | b'x' | b'X' | b'o' => specifier.precision.is_none(),
        _ => value.is_finite(),
    }
}

/// `%a`: the bits of a number that is not negative, with as many digits as it needs unless told otherwise.
fn hexadecimal(value: f64, precision: Option<usize>) -> String {
    const DIGITS: usize = 13;
    let precision = precision.map(|precision| precision.min(MAX_WIDTH));
    let (field, fraction) = (value.to_bits() >> 52, value.to_bits() & ((1 << 52) - 1));
    let exponent = if value == 0.0 { 0 } else { field.max(1) as i64 - 1023 };
    let mut mantissa = u64::from(field != 0) << 52 | fraction;
    if let Some(dropped) = precision.and_then(|precision| DIGITS.checked_sub(precision)).filter(|&digits| digits > 0) {
        let (unit, rest) = (1u64 << (4 * dropped), mantissa & ((1 << (4 * dropped)) - 1));
        let is_odd = mantissa & unit != 0;
        mantissa -= rest;
        if rest > unit / 2 || (rest == unit / 2 && is_odd) {
            mantissa += unit;
        }
    }
    let digits = format!("{:013x}", mantissa & ((1 << 52) - 1));
    let digits = match precision {
        Some(precision) => format!("{digits:0<precision$}")[..precision].to_owned(),
        None => digits.trim_end_matches('0').to_owned(),
    };
    let point = if digits.is_empty() { "" } else { "." };
    format!("0x{}{point}{digits}p{exponent:+}", mantissa >> 52)
}

/// `%g` drops zeros at the end of the fraction.
fn trim_zeros(text: &str) -> String {
    let (mantissa, exponent) = match text.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    match exponent {
        Some(exponent) => format!("{mantissa}e{exponent}"),
        None => mantissa.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(specifier: &str, value: u64) -> String {
        let mut out = Vec::new();
        Specifier::parse(specifier.as_bytes()).unwrap().write(value, b"text", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn printf_follows_c() {
        assert_eq!(show("5d", -3i32 as u32 as u64), "   -3");
        assert_eq!(show("-5dx", 3), "3    ");
        assert_eq!(show("05d", 42), "00042");
        assert_eq!(show("08x", 0xBEEF), "0000beef");
        assert_eq!(show("lld", (-1i64) as u64), "-1");
        assert_eq!(show("u", u64::MAX), "4294967295");
        assert_eq!(show("f", 1.5f64.to_bits()), "1.500000");
        assert_eq!(show(".2e", 12345.678f64.to_bits()), "1.23e+04");
        assert_eq!(show("g", 0.0001f64.to_bits()), "0.0001");
        assert_eq!(show("g", 1e10f64.to_bits()), "1e+10");
        assert_eq!(show("g", 100.0f64.to_bits()), "100");
        assert_eq!(show("+.1f", 2.25f64.to_bits()), "+2.2");
        assert_eq!(show(".2s", 0), "te");
        assert_eq!(show("c", 65), "A");
        assert_eq!(show("p", 0x7F10), "0x7f10");
        assert_eq!(show("8p", 0), "   (nil)");
        assert_eq!(show("a", 1.0f64.to_bits()), "0x1p+0");
        assert_eq!(show("a", (-0.15625f64).to_bits()), "-0x1.4p-3");
        assert_eq!(show(".2a", 3.999f64.to_bits()), "0x2.00p+1");
        assert_eq!(show(".1A", 0.0f64.to_bits()), "0X0.0P+0");
    }
}
