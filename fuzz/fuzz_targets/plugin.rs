//! Looks at arbitrary bytes as at a plugin's library. Begin with a real one in `corpus/plugin`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = quilt_station::inspect_plugin_bytes(data);
});
