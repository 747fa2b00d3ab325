//! Messages that announce far more than they bring cost what they bring, not what they announce. A test program of its own:
//! it counts every byte that it has allocated.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use peak_alloc::PeakAlloc;
use quilt_protocol::codec::{from_bincode, read_frame};
use quilt_protocol::control::{Plan, Registered, Registration, Report, UpdateConfiguration, Verdict};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// serde reserves at most 1 MiB for elements that have not arrived; two of them may be open in one another.
const ROOM: usize = (2 << 20) + (64 << 10);

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let hex: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// What a message is decoded with, its result dropped.
type Decode<'a> = &'a dyn Fn(&[u8]);

/// How many bytes `work` had allocated at its peak.
fn peak(work: impl FnOnce()) -> usize {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    work();
    ALLOCATED.peak_usage().saturating_sub(before)
}

#[test]
fn a_length_that_lies_takes_no_memory_wherever_it_stands() {
    assert!(peak(|| drop(std::hint::black_box(vec![1_u8; 2 * ROOM]))) > ROOM, "what is allocated is counted");
    let lies: [&[u8]; 4] = [
        &[251, 0xff, 0xff],
        &[252, 0xff, 0xff, 0xff, 0x7f],
        &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[253, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
    ];
    let frame = |bytes: &[u8]| drop(read_frame(bytes, false));
    let greeting = |bytes: &[u8]| drop(read_frame(bytes, true));
    let decoders: [(&str, usize, Decode<'_>); 12] = [
        ("hello-station", 4, &greeting),
        ("welcome", 4, &greeting),
        ("refusal", 4, &greeting),
        ("request", 4, &frame),
        ("goodbye", 4, &frame),
        ("registration", 0, &|bytes| drop(from_bincode::<Registration>("x", bytes))),
        ("registered", 0, &|bytes| drop(from_bincode::<Registered>("x", bytes))),
        ("report", 0, &|bytes| drop(from_bincode::<Report>("x", bytes))),
        ("update-configuration", 0, &|bytes| drop(from_bincode::<UpdateConfiguration<'_>>("x", bytes))),
        ("plan", 0, &|bytes| drop(from_bincode::<Plan>("x", bytes))),
        ("verdict-rejected", 0, &|bytes| drop(from_bincode::<Verdict>("x", bytes))),
        ("verdict-unchanged", 0, &|bytes| drop(from_bincode::<Verdict>("x", bytes))),
    ];
    for (name, skipped, decode) in decoders {
        let good = golden(name);
        for at in skipped..good.len() {
            for lie in lies {
                // Once in the place of what stands there, once with all that follows still there.
                let cut = [&good[skipped..at], lie].concat();
                let inserted = [&cut, &good[at..]].concat();
                for bytes in [cut, inserted] {
                    let used = peak(|| decode(&bytes));
                    assert!(used < ROOM, "{name}, byte {at}, {lie:?}: {used} bytes for a message of {}", bytes.len());
                }
            }
        }
    }
}

/// Over a real socket: `tests/tests/system/hostile.rs`.
#[test]
fn case_19_decode_bombs_are_errors_within_bounds() {
    let trailing = |name: &str| [golden(name), vec![0]].concat();
    // As many lists in one another as a report has, each of the greatest length.
    let nested = [&[253, 255, 255, 255, 255, 255, 255, 255, 127][..]; 57].concat();
    let is_error = |what: &str, decode: &dyn Fn() -> bool| {
        let mut is_error = false;
        let used = peak(|| is_error = decode());
        assert!(is_error, "{what} is read");
        assert!(used < ROOM, "{what}: {used} bytes");
    };
    let frame = |bytes: &[u8]| read_frame(bytes, false).is_err();
    is_error("a request in a request", &|| frame(&[3; 60_000]));
    is_error("an unknown tag of a message", &|| frame(&[200]));
    is_error("a goodbye with more behind it", &|| frame(&trailing("goodbye")[4..]));
    is_error("lists in lists of a report", &|| from_bincode::<Report>("x", &nested).is_err());
    is_error("lists in lists of a registration", &|| from_bincode::<Registration>("x", &nested).is_err());
    is_error("a report with more behind it", &|| from_bincode::<Report>("x", &trailing("report")).is_err());
    is_error("a verdict of an unknown tag", &|| from_bincode::<Verdict>("x", &[200]).is_err());
    let deep = "[".repeat(1_000_000);
    is_error("a document of great depth", &|| serde_json::from_str::<serde_json::Value>(&deep).is_err());
}
