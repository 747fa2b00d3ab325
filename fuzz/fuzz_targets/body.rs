//! Requests as roles decode them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quilt_plugin_api::{Encoding, decode};
use quilt_role_counter::api::{Count, CounterConfig, CounterError, Increment};
use quilt_role_process::api::{ProcessConfig, ProcessStatus, Signal, Tail};

fuzz_target!(|data: &[u8]| {
    for encoding in [Encoding::Json, Encoding::Bincode] {
        let _ = decode::<Increment>(encoding, data);
        let _ = decode::<Count>(encoding, data);
        let _ = decode::<CounterError>(encoding, data);
        let _ = decode::<ProcessStatus>(encoding, data);
        let _ = decode::<Signal>(encoding, data);
        let _ = decode::<Tail>(encoding, data);
    }
    let _ = decode::<CounterConfig>(Encoding::Json, data);
    let _ = decode::<ProcessConfig>(Encoding::Json, data);
});
