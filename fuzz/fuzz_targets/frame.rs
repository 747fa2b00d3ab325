//! One frame: what reads back is written again to something that reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quilt_protocol::codec::{FRAME_MAX, find_frame, put_frame, read_frame};

fuzz_target!(|data: &[u8]| {
    let Ok(Some(frame)) = find_frame(data, FRAME_MAX) else { return };
    for greeting in [false, true] {
        if let Ok((message, body)) = read_frame(frame, greeting) {
            let mut again = Vec::new();
            put_frame(&mut again, &message, body);
            let magic = matches!(message.name(), "Hello" | "Welcome" | "Refusal");
            let frame = find_frame(&again, FRAME_MAX).expect("we wrote it").expect("whole");
            assert_eq!(read_frame(frame, magic).expect("we wrote it"), (message, body));
        }
    }
});
