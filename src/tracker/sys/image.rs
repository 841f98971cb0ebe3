//! What of this process's own program and libraries is in memory.

use std::ffi::{c_int, c_void};

use super::page_size;

/// Unmaps the pages of code that have been used so far; those that are used again come back by themselves, from
/// the page cache.
///
/// For a process that is about to sleep for hours: most of what the loader, the C library's choice of its
/// functions and the reading of options went through is never needed again, two thirds of what such a process
/// has resident, and nobody can use the memory for something else while it is mapped. Nothing is
/// written to such pages, unless by a debugger, whose break points before this go too; who has
/// them set afterwards keeps them.
pub fn unmap_used_code() {
    // SAFETY: the callback takes what the loader passes, for as long as it passes it, and no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_code), std::ptr::null_mut()) };
}

unsafe extern "C" fn unmap_code(
    image: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid image, and its program headers lie in that.
    let (base, headers) = unsafe {
        let image = &*image;
        let count = usize::from(image.dlpi_phnum);
        (image.dlpi_addr, std::slice::from_raw_parts(image.dlpi_phdr, count))
    };
    let is_code = libc::PF_R | libc::PF_X;
    for header in headers {
        // What may be written to may have been.
        if header.p_type != libc::PT_LOAD || header.p_flags != is_code {
            continue;
        }
        let start = (base + header.p_vaddr).next_multiple_of(page_size());
        let end = base + header.p_vaddr + header.p_memsz;
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        // SAFETY: the pages are private, of a file, and as the file has them, so that whoever uses
        // them again reads the same. That it fails (locked memory) changes nothing.
        unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    }
    0
}
