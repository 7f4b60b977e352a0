//! What an idle service gives back.

use std::ffi::c_void;

/// Gives back what was freed, and unmaps the program's text and constants until they are needed again.
///
/// The kernel maps sixteen pages of a program around each one that is needed, so that of 25 MiB most are there after the start. A
/// page that is needed is mapped again from the page cache, which takes a microsecond; the others are the first to go where memory
/// becomes scarce, and don't count for the OOM killer (proc_pid_oom_score(5)).
pub(super) fn give_back() {
    trim();
    unmap_program();
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no safe wrapper for malloc_trim exists")]
fn trim() {
    // SAFETY: it may be called by any thread at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators have their own ways.
#[cfg(not(target_env = "gnu"))]
const fn trim() {}

#[expect(unsafe_code, reason = "no safe wrapper for dl_iterate_phdr exists")]
fn unmap_program() {
    // SAFETY: the function is called before this returns, with what its type says (dl_iterate_phdr(3)).
    unsafe {
        libc::dl_iterate_phdr(Some(unmap_segments), std::ptr::null_mut());
    }
}

/// Unmaps the pages of one object's segments that nothing is ever written to; the first object is the program, and the only one.
#[expect(unsafe_code, reason = "what the linker mapped is known to it alone")]
unsafe extern "C" fn unmap_segments(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> libc::c_int {
    let page = rustix::param::page_size();
    // SAFETY: the linker keeps both as long as the object is loaded, and it is while this is called.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    // Constants that the linker adjusts are in a segment that may be written to until it has.
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let (Ok(start), Ok(length)) = (usize::try_from(base + header.p_vaddr), usize::try_from(header.p_memsz)) else {
            continue;
        };
        let first = start.next_multiple_of(page);
        let whole = (start + length).saturating_sub(first) / page * page;
        // SAFETY: nobody writes to these pages, so that each is the file's when it is mapped again (madvise(2)).
        let _ = unsafe { rustix::mm::madvise(first as *mut c_void, whole, rustix::mm::Advice::LinuxDontNeed) };
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_there_when_it_is_needed() {
        // What the linker has adjusted, and what was written since the start.
        static WRITTEN: std::sync::Mutex<Vec<&str>> = std::sync::Mutex::new(Vec::new());
        const ADJUSTED: [fn(f64) -> f64; 2] = [f64::sqrt, f64::abs];
        WRITTEN.lock().unwrap().push("a");
        for _ in 0..10 {
            give_back();
            assert_eq!(ADJUSTED.map(|function| function(4.0)), [2.0, 4.0]);
            assert_eq!(*WRITTEN.lock().unwrap(), ["a"]);
            assert_eq!(format!("{:?}", "ä".to_uppercase()), "\"Ä\"");
        }
    }
}
