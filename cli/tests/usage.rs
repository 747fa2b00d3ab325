//! The command line itself. (That this file exists makes cargo build the binary for the whole-system tests too.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::process::Command;

#[test]
fn a_flag_that_does_not_exist_is_a_usage_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_quiltctl")).arg("--no-such-flag").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--no-such-flag") && text.contains("--help"), "{text}");
}

#[test]
fn help_that_cannot_be_written_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_quiltctl")).arg("--help").stdout(full).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_number_is_asked_for_in_words() {
    for (arguments, expected) in [
        (&["logs", "cam-1", "-n", "x"][..], "expected how many lines, such as 100, or all, got \"x\""),
        (&["logs", "cam-1", "-n", "-1"], "expected how many lines, such as 100, or all, got \"-1\""),
        (&["rollback", "cam-1", "--to", "last"], "expected a revision's number such as 7, got \"last\""),
        (&["events", "--after", "1h"], "expected an event's number such as 7, got \"1h\""),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_quiltctl")).args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains(expected), "{text}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for flag in ["--help", "--version"] {
        let output = Command::new(env!("CARGO_BIN_EXE_quiltctl")).arg(flag).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains("quiltctl"));
    }
}
