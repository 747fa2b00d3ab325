//! What else a program needs to begin: of a program that is there, Linux says "No such file or directory" as well when it
//! is the interpreter that is missing.

use std::fs::File;
use std::io::{self, Read as _};

/// How much of a program is looked at: Linux reads no more of its first line.
const FIRST_LINE_MAX: u64 = 256;

/// Names what is missing when a program is there and cannot be found all the same.
pub(super) fn missing(program: &str, error: &io::Error) -> Option<String> {
    // A program without a slash was looked for in PATH.
    if error.kind() != io::ErrorKind::NotFound || !program.contains('/') {
        return None;
    }
    let mut head = Vec::new();
    File::open(program).ok()?.take(FIRST_LINE_MAX).read_to_end(&mut head).ok()?;
    Some(missing_for(&head))
}

/// The same, from how the program begins.
fn missing_for(head: &[u8]) -> String {
    let Some(line) = head.strip_prefix(b"#!") else {
        return "the loader or the library folder that it was linked for is not there".to_owned();
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let interpreter = line.trim_matches([' ', '\t']).split([' ', '\t']).next().unwrap_or_default();
    let hint = if line.ends_with('\r') { ", since its lines end in carriage returns" } else { "" };
    format!("the interpreter {interpreter:?} in its first line is not there{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interpreter_is_named_with_what_cannot_be_seen() {
        let named = "the interpreter \"/no/sh\" in its first line is not there";
        assert_eq!(missing_for(b"#! /no/sh -e\necho"), named);
        let windows = missing_for(b"#!/bin/sh\r\necho\r\n");
        assert!(windows.contains(r#""/bin/sh\r""#) && windows.ends_with("carriage returns"), "{windows}");
        assert!(missing_for(b"\x7fELF\x02").contains("loader"));
    }
}
