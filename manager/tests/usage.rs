//! The command line itself. (That this file exists makes cargo build the binary for the whole-system tests too.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::process::Command;

#[test]
fn a_flag_that_does_not_exist_is_a_usage_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_quilt-manager")).arg("--no-such-flag").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--no-such-flag") && text.contains("--help"), "{text}");
}

#[test]
fn help_and_version_go_to_standard_output() {
    for flag in ["--help", "--version"] {
        let output = Command::new(env!("CARGO_BIN_EXE_quilt-manager")).arg(flag).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains("quilt-manager"));
    }
}
