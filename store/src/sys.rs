//! The unsafe corner: giving back memory that sled zero-fills and never uses, and a heap that stays small.

use std::time::Duration;

/// Mappings smaller than this are not worth the look.
const MAPPING_BYTES_MIN: usize = 512 * 1024;

/// How often, and at what distance, sled's workers are looked at until they rest: a second in all. Nothing tells of it.
const REST_TRIES: u32 = 50;
const REST_PAUSE: Duration = Duration::from_millis(20);

/// Keeps the heap of a long-lived process small: one arena for all threads, large blocks by mmap, and what is free at
/// the top given back. Call before other threads exist. mallopt(3); nothing outside glibc.
pub fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE_BYTES: libc::c_int = 64 * 1024;
        // SAFETY: mallopt changes parameters of the allocator only; a value that it refuses changes nothing.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BYTES);
        }
    }
}

/// Returns every all-zero page of the large private anonymous mappings to the kernel: 21 MB of sled's unused
/// histograms. Costs about 15 ms. Does nothing while any thread but this one and sled's idle workers exists: such
/// a thread could write to a page, or unmap it, between the look and the call.
///
/// The mappings are kept from huge pages from then on: where those are given unasked, khugepaged would fill the holes
/// again (Documentation/admin-guide/mm/transhuge.rst).
pub(crate) fn give_back_zero_pages() {
    let mut tries = 0;
    while !alone_but_for_idle_workers() {
        tries += 1;
        if tries > REST_TRIES {
            tracing::debug!("zero pages stay: other threads run");
            return;
        }
        // On a slow board a worker that has just been started is still on its way to its first wait.
        std::thread::sleep(REST_PAUSE);
    }
    // Without the list of mappings nothing is given back, and nothing else changes.
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let page = page_bytes();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // proc_pid_maps(5): address perms offset dev inode [path]; anonymous ones have no path.
        let [range, "rw-p", ..] = words.as_slice() else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let parse = |hex: &str| usize::from_str_radix(hex, 16);
        let (Ok(start), Ok(end)) = (parse(start), parse(end)) else { continue };
        if words.len() == 5 && end - start >= MAPPING_BYTES_MIN {
            give_back(start, end, page);
        }
    }
}

/// sled's workers wait for work that only this thread could give them.
fn alone_but_for_idle_workers() -> bool {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return false };
    let this =
        std::fs::read_link("/proc/thread-self").ok().and_then(|p| p.file_name().map(ToOwned::to_owned));
    tasks.filter_map(Result::ok).filter(|task| Some(task.file_name()) != this).all(|task| {
        // proc_pid_stat(5): "tid (name) state …".
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((head, rest)) = stat.rsplit_once(") ") else { return false };
        head.contains("(sled") && rest.starts_with('S')
    })
}

fn page_bytes() -> usize {
    // SAFETY: sysconf reads a constant.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).ok().filter(|b| b.is_power_of_two()).unwrap_or(4096)
}

fn give_back(start: usize, end: usize, page: usize) {
    // Refused by a kernel without huge pages, where nothing is to be kept off.
    advise(start, end, libc::MADV_NOHUGEPAGE);
    // Whole runs at once: a huge page goes back only as a whole.
    let mut run = start;
    for at in (start..end).step_by(page) {
        // SAFETY: the kernel has just listed the mapping as readable and private to this process, and nobody
        // else runs who could unmap it. It may be memory that Rust considers uninitialised or borrowed, so it is
        // read by volatile loads and never as a Rust value of its owner.
        let zero = (0..page / size_of::<u64>())
            .all(|n| unsafe { std::ptr::with_exposed_provenance::<u64>(at).add(n).read_volatile() == 0 });
        if !zero {
            if !advise(run, at, libc::MADV_DONTNEED) {
                return;
            }
            run = at + page;
        }
    }
    advise(run, end, libc::MADV_DONTNEED);
}

/// Whether the kernel took the advice; none is needed for nothing.
fn advise(start: usize, end: usize, advice: libc::c_int) -> bool {
    // SAFETY: the range lies in one private anonymous mapping of this process. MADV_NOHUGEPAGE changes no content, and
    // MADV_DONTNEED is given for pages alone that were all zero, which read as zero again (madvise(2)).
    start == end
        || unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), end - start, advice) } == 0
}
