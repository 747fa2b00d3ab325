//! Bytes that cross.

use std::ffi::c_void;

use bytes::Bytes;
use quilt_plugin_abi::{Buf, Slice};

/// The other side handed over something that cannot be bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a buffer of {0} bytes at a null pointer, or longer than memory can be")]
pub struct BadBuf(u64);

/// Hands bytes over without copying them.
pub fn to_buf(bytes: Bytes) -> Buf {
    if bytes.is_empty() {
        return Buf { ptr: std::ptr::null(), len: 0, owner: std::ptr::null_mut(), release: None };
    }
    let owner = Box::new(bytes);
    let (ptr, len) = (owner.as_ptr(), owner.len() as u64);
    Buf { ptr, len, owner: Box::into_raw(owner).cast(), release: Some(release) }
}

unsafe extern "C" fn release(owner: *mut c_void) {
    // SAFETY: `to_buf` made it from a box of this type, and the receiver calls this once.
    drop(unsafe { Box::from_raw(owner.cast::<Bytes>()) });
}

/// Takes bytes over without copying them; they are given back when the last clone is dropped.
///
/// # Errors
///
/// [`BadBuf`]; what can be released is released.
///
/// # Safety
///
/// The buffer must be as the contract says: `len` bytes that nobody changes until `release`, which may be called once, on
/// any thread.
pub unsafe fn to_bytes(buf: Buf) -> Result<Bytes, BadBuf> {
    let taken = Taken(buf);
    let Buf { ptr, len, .. } = taken.0;
    match usize::try_from(len) {
        Ok(0) => Ok(Bytes::new()),
        Ok(len) if !ptr.is_null() && isize::try_from(len).is_ok() => Ok(Bytes::from_owner(taken)),
        _ => Err(BadBuf(len)),
    }
}

/// A buffer that is ours now.
struct Taken(Buf);

// SAFETY: the contract lets a buffer be read and released on any thread.
unsafe impl Send for Taken {}

impl AsRef<[u8]> for Taken {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `to_bytes` has looked at pointer and length; the caller of `to_bytes` vouches for the bytes.
        unsafe { std::slice::from_raw_parts(self.0.ptr, self.0.len as usize) }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(release) = self.0.release.take() {
            // SAFETY: taken out above, so it is called once.
            unsafe { release(self.0.owner) }
        }
    }
}

/// Lends bytes for the duration of a call.
pub fn lend(bytes: &[u8]) -> Slice {
    Slice { ptr: if bytes.is_empty() { std::ptr::null() } else { bytes.as_ptr() }, len: bytes.len() as u64 }
}

/// Looks at what was lent; nothing if it cannot be bytes.
///
/// # Safety
///
/// The slice must be as the contract says, and the result must not outlive the call that it was lent for.
pub unsafe fn borrowed<'a>(slice: Slice) -> &'a [u8] {
    match usize::try_from(slice.len) {
        Ok(len) if len > 0 && !slice.ptr.is_null() && isize::try_from(len).is_ok() => {
            // SAFETY: not null, not too long; the caller vouches for the rest.
            unsafe { std::slice::from_raw_parts(slice.ptr, len) }
        }
        _ => &[],
    }
}

/// What was lent, as text; what is no UTF-8 in it is replaced.
///
/// # Safety
///
/// As [`borrowed`].
pub unsafe fn text(slice: Slice) -> String {
    // SAFETY: passed on to the caller.
    String::from_utf8_lossy(unsafe { borrowed(slice) }).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_without_a_copy_and_are_given_back_once() {
        let bytes = Bytes::from(vec![7; 1000]);
        let at = bytes.as_ptr();
        // SAFETY: made by `to_buf`.
        let back = unsafe { to_bytes(to_buf(bytes.clone())) }.unwrap();
        assert_eq!((back.as_ptr(), back.len()), (at, 1000));
        assert!(!bytes.is_unique());
        drop(back);
        assert!(bytes.is_unique(), "given back");
    }

    #[test]
    fn a_null_pointer_with_a_length_is_no_memory() {
        for len in [1, u64::MAX, isize::MAX as u64 + 1] {
            let buf = Buf { ptr: std::ptr::null(), len, owner: std::ptr::null_mut(), release: None };
            // SAFETY: refused before it is looked at.
            assert_eq!(unsafe { to_bytes(buf) }, Err(BadBuf(len)));
            // SAFETY: as above.
            assert!(unsafe { borrowed(Slice { ptr: std::ptr::null(), len }) }.is_empty());
        }
    }
}
