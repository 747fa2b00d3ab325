//! The note in the library's file: what it is, readable before any of it runs.

use quilt_plugin_abi as abi;

/// The version of this crate.
pub const SDK: &str = env!("CARGO_PKG_VERSION");
/// The contract it is built for: major, lowest and highest minor version.
pub const ABI: &str = "1.0-0";
const _: () = assert!(abi::MAJOR == 1 && abi::MINOR == 0, "write the new version into ABI");

/// An ELF note with `N` bytes of text, `key=value` lines.
#[repr(C, align(4))]
pub struct Note<const N: usize> {
    name_size: u32,
    text_size: u32,
    kind: u32,
    name: [u8; 8],
    text: [u8; N],
}

/// How long a note's text is with the zeros that fill it up to a multiple of 4.
pub const fn length(parts: &[&str]) -> usize {
    sum(parts).next_multiple_of(4)
}

const fn sum(parts: &[&str]) -> usize {
    let (mut sum, mut at) = (0, 0);
    while at < parts.len() {
        sum += parts[at].len();
        at += 1;
    }
    sum
}

impl<const N: usize> Note<N> {
    /// A note of these texts, one after the other.
    pub const fn new(parts: &[&str]) -> Self {
        let (mut text, mut to, mut part) = ([0; N], 0, 0);
        while part < parts.len() {
            let (bytes, mut from) = (parts[part].as_bytes(), 0);
            while from < bytes.len() {
                text[to] = bytes[from];
                (to, from) = (to + 1, from + 1);
            }
            part += 1;
        }
        let name = *b"QUILT\0\0\0";
        Self { name_size: abi::NOTE_NAME.len() as u32 + 1, text_size: to as u32, kind: abi::NOTE_TYPE, name, text }
    }
}
