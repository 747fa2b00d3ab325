//! Names and addresses from outside.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quilt_protocol::{Address, Digest, Name};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<Name>() {
        assert!(!name.as_str().contains(['/', '\0']) && name.as_str() != "..");
    }
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().expect("its own text"), address);
    }
    let _ = text.parse::<Digest>();
});
