//! The system calls with which files change, caught on their way: this binary has functions of the names that the
//! standard library and SQLite call, and those look whether a [`Disk`] is concerned. So whatever the node does with a
//! file is seen, by whichever library, and nothing of the node is built otherwise than in the field.
//!
//! All of the unsafe code of the tests is in this file. Its functions promise what the manual pages of their namesakes
//! say, and call the kernel themselves; `super::disk` decides what becomes of a call.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::disk::{Call, NodeId, Verdict, Watched};

/// Descriptors that can be told apart; a process has 1,024 by default.
const DESCRIPTORS: usize = 1 << 16;

/// A file or a folder of a disk.
type Opened = (Arc<Watched>, NodeId);

/// Whether a descriptor is one of [`OPEN`]: most are not, and need no lock.
static IS_OPEN: [AtomicBool; DESCRIPTORS] = [const { AtomicBool::new(false) }; DESCRIPTORS];
/// What is open on disks, by descriptor.
static OPEN: Mutex<BTreeMap<c_int, Opened>> = Mutex::new(BTreeMap::new());
static DISKS: Mutex<Vec<Arc<Watched>>> = Mutex::new(Vec::new());
static DISKS_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Has the calls for files below the disk's folder looked at, from now on.
pub fn watch(disk: Arc<Watched>) {
    DISKS.lock().unwrap().push(disk);
    DISKS_COUNT.fetch_add(1, Ordering::SeqCst);
}

/// Ends [`watch`]. What is open stays watched until it is closed.
pub fn leave(disk: &Arc<Watched>) {
    DISKS.lock().unwrap().retain(|other| !Arc::ptr_eq(other, disk));
    DISKS_COUNT.fetch_sub(1, Ordering::SeqCst);
}

/// The disk that a path lies on.
fn disk_of(path: &Path) -> Option<Arc<Watched>> {
    if DISKS_COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    DISKS.lock().unwrap().iter().find(|disk| path.starts_with(disk.root())).cloned()
}

fn opened(descriptor: c_int) -> Option<Opened> {
    let at = usize::try_from(descriptor).ok().filter(|at| *at < DESCRIPTORS)?;
    if !IS_OPEN[at].load(Ordering::SeqCst) {
        return None;
    }
    OPEN.lock().unwrap().get(&descriptor).cloned()
}

fn set_opened(descriptor: c_int, disk: Arc<Watched>, node: NodeId) {
    let at = usize::try_from(descriptor).expect("an open descriptor is not negative");
    assert!(at < DESCRIPTORS, "descriptor {at} is beyond the table");
    OPEN.lock().unwrap().insert(descriptor, (disk, node));
    IS_OPEN[at].store(true, Ordering::SeqCst);
}

fn set_closed(descriptor: c_int) {
    let Some(at) = usize::try_from(descriptor).ok().filter(|at| *at < DESCRIPTORS) else { return };
    if IS_OPEN[at].swap(false, Ordering::SeqCst) {
        OPEN.lock().unwrap().remove(&descriptor);
    }
}

/// Fails a call as the kernel would.
fn fail(errno: c_int) -> c_int {
    // SAFETY: the location is this thread's own, and there as long as the thread is.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn narrow(answer: c_long) -> c_int {
    c_int::try_from(answer).expect("the kernel answers these calls with an int")
}

/// The path behind a pointer that a caller of a system call hands in.
///
/// # Safety
/// `path` points to a string that ends with a zero byte, as it must for the system call.
unsafe fn path_of<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: what this function's caller promises.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

/// A path as it is seen from the root, where it is relative to an open folder.
///
/// # Safety
/// As [`path_of`].
unsafe fn path_at(folder: c_int, path: *const c_char) -> PathBuf {
    // SAFETY: what this function's caller promises.
    let path = unsafe { path_of(path) };
    if path.is_absolute() || folder == libc::AT_FDCWD || DISKS_COUNT.load(Ordering::SeqCst) == 0 {
        return path.to_owned();
    }
    std::fs::read_link(format!("/proc/self/fd/{folder}")).map_or(path.to_owned(), |folder| folder.join(path))
}

/// Opens a file.
///
/// # Safety
/// As `open(2)`. The third argument is read only where the flags say that there is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    let open = || narrow(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) });
    // SAFETY: whoever opens a file hands in a path.
    let name = unsafe { path_of(path) };
    let Some(disk) = disk_of(name) else { return open() };
    let mut state = disk.state();
    let creates = flags & libc::O_CREAT != 0 && !name.exists();
    if creates && let Verdict::Fail(errno) = state.judge(Call::Name) {
        return fail(errno);
    }
    let descriptor = open();
    if descriptor >= 0 {
        let node = if creates { state.created(name, false) } else { state.node(name) };
        if flags & libc::O_TRUNC != 0 && !creates {
            state.resized(node, 0);
        }
        drop(state);
        set_opened(descriptor, disk, node);
    }
    descriptor
}

/// The same.
///
/// # Safety
/// As [`open64`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    unsafe { open64(path, flags, mode) }
}

/// Closes a descriptor.
///
/// # Safety
/// As `close(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    set_closed(descriptor);
    // SAFETY: the argument is that of the call that was made.
    narrow(unsafe { libc::syscall(libc::SYS_close, descriptor) })
}

/// Writes at a place, or where the descriptor stands.
///
/// # Safety
/// `bytes` points to `count` bytes.
unsafe fn write_at(descriptor: c_int, bytes: *const c_void, count: usize, place: Option<i64>) -> isize {
    let write = |count: usize| {
        // SAFETY: the arguments are those of the call that was made, or fewer bytes.
        let written = unsafe {
            match place {
                Some(place) => libc::syscall(libc::SYS_pwrite64, descriptor, bytes, count, place),
                None => libc::syscall(libc::SYS_write, descriptor, bytes, count),
            }
        };
        isize::try_from(written).expect("as wide as a pointer")
    };
    let Some((disk, node)) = opened(descriptor) else { return write(count) };
    let mut state = disk.state();
    let written = match state.judge(Call::Write) {
        Verdict::Fail(errno) => return fail(errno) as isize,
        Verdict::Pass => write(count),
        Verdict::Half => write(count.div_ceil(2)),
    };
    if let Ok(length) = usize::try_from(written) {
        let start = place.unwrap_or_else(|| {
            // SAFETY: asks where an open file stands, after what was written just now.
            unsafe { libc::lseek(descriptor, 0, libc::SEEK_CUR) - written as i64 }
        });
        // SAFETY: the first `length` of the caller's bytes, which it does not change while it waits for us.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
        state.written(node, u64::try_from(start).expect("no file begins before 0"), bytes);
    }
    written
}

/// Writes where a descriptor stands.
///
/// # Safety
/// As `write(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(descriptor: c_int, bytes: *const c_void, count: usize) -> isize {
    // SAFETY: the arguments are those of the call that was made.
    unsafe { write_at(descriptor, bytes, count, None) }
}

/// Writes several pieces where a descriptor stands: on a disk only the first that has bytes, which is allowed.
///
/// # Safety
/// As `writev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(descriptor: c_int, pieces: *const libc::iovec, count: c_int) -> isize {
    if opened(descriptor).is_some() {
        // SAFETY: the caller's list has so many pieces.
        let pieces = unsafe { std::slice::from_raw_parts(pieces, usize::try_from(count).unwrap_or(0)) };
        let Some(piece) = pieces.iter().find(|piece| piece.iov_len > 0) else { return 0 };
        // SAFETY: each piece of the caller points to its bytes.
        return unsafe { write_at(descriptor, piece.iov_base, piece.iov_len, None) };
    }
    // SAFETY: the arguments are those of the call that was made.
    isize::try_from(unsafe { libc::syscall(libc::SYS_writev, descriptor, pieces, count) }).expect("as wide")
}

/// Writes at a place.
///
/// # Safety
/// As `pwrite(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(descriptor: c_int, bytes: *const c_void, count: usize, place: i64) -> isize {
    // SAFETY: the arguments are those of the call that was made.
    unsafe { write_at(descriptor, bytes, count, Some(place)) }
}

/// The same.
///
/// # Safety
/// As [`pwrite64`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(descriptor: c_int, bytes: *const c_void, count: usize, place: i64) -> isize {
    // SAFETY: the arguments are those of the call that was made.
    unsafe { write_at(descriptor, bytes, count, Some(place)) }
}

/// Copies between files without their bytes passing through the process: on a disk never, so that they are seen.
///
/// # Safety
/// As `copy_file_range(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_place: *mut i64,
    to: c_int,
    to_place: *mut i64,
    count: usize,
    flags: c_uint,
) -> isize {
    if opened(to).is_some() {
        return fail(libc::EXDEV) as isize;
    }
    // SAFETY: the arguments are those of the call that was made.
    let copied = unsafe { libc::syscall(libc::SYS_copy_file_range, from, from_place, to, to_place, count, flags) };
    isize::try_from(copied).expect("as wide as a pointer")
}

/// The same, in its older form.
///
/// # Safety
/// As `sendfile(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(to: c_int, from: c_int, place: *mut i64, count: usize) -> isize {
    if opened(to).is_some() {
        return fail(libc::EINVAL) as isize;
    }
    // SAFETY: the arguments are those of the call that was made.
    isize::try_from(unsafe { libc::syscall(libc::SYS_sendfile, to, from, place, count) }).expect("as wide")
}

/// Makes what was written durable; on a disk that is for its record alone, the kernel is not troubled.
///
/// # Safety
/// As `fsync(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    let Some((disk, node)) = opened(descriptor) else {
        // SAFETY: the argument is that of the call that was made.
        return narrow(unsafe { libc::syscall(libc::SYS_fsync, descriptor) });
    };
    let mut state = disk.state();
    if let Verdict::Fail(errno) = state.judge(Call::Sync) {
        state.sync_failed(node);
        return fail(errno);
    }
    state.synced(node);
    0
}

/// The same: that the times of a file may be lost makes no difference here.
///
/// # Safety
/// As [`fsync`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    // SAFETY: the argument is that of the call that was made.
    unsafe { fsync(descriptor) }
}

/// Sets a file's length.
///
/// # Safety
/// As `ftruncate(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(descriptor: c_int, length: i64) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    let resize = || narrow(unsafe { libc::syscall(libc::SYS_ftruncate, descriptor, length) });
    let Some((disk, node)) = opened(descriptor) else { return resize() };
    let mut state = disk.state();
    if let Verdict::Fail(errno) = state.judge(Call::Resize) {
        return fail(errno);
    }
    let answer = resize();
    if answer == 0 {
        state.resized(node, u64::try_from(length).expect("the kernel takes no negative one"));
    }
    answer
}

/// The same.
///
/// # Safety
/// As [`ftruncate64`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(descriptor: c_int, length: i64) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    unsafe { ftruncate64(descriptor, length) }
}

/// Gives something another name.
///
/// # Safety
/// As `rename(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let rename = || {
        // SAFETY: the arguments are those of the call that was made.
        narrow(unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) })
    };
    // SAFETY: whoever renames hands in two paths.
    let (old, new) = unsafe { (path_of(from), path_of(to)) };
    let Some(disk) = disk_of(old) else { return rename() };
    let mut state = disk.state();
    if let Verdict::Fail(errno) = state.judge(Call::Name) {
        return fail(errno);
    }
    let answer = rename();
    if answer == 0 {
        state.renamed(old, new);
    }
    answer
}

/// Gives a file one name more.
///
/// # Safety
/// As `linkat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_folder: c_int,
    from: *const c_char,
    to_folder: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    let link = || narrow(unsafe { libc::syscall(libc::SYS_linkat, from_folder, from, to_folder, to, flags) });
    // SAFETY: whoever links hands in two paths.
    let (old, new) = unsafe { (path_at(from_folder, from), path_at(to_folder, to)) };
    let Some(disk) = disk_of(&new) else { return link() };
    let mut state = disk.state();
    if let Verdict::Fail(errno) = state.judge(Call::Name) {
        return fail(errno);
    }
    let answer = link();
    if answer == 0 {
        state.linked(&old, &new);
    }
    answer
}

/// Takes a name away.
///
/// # Safety
/// As `unlinkat(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    let unlink = || narrow(unsafe { libc::syscall(libc::SYS_unlinkat, folder, path, flags) });
    // SAFETY: whoever removes something hands in its path.
    let name = unsafe { path_at(folder, path) };
    let Some(disk) = disk_of(&name) else { return unlink() };
    let mut state = disk.state();
    if name.symlink_metadata().is_ok()
        && let Verdict::Fail(errno) = state.judge(Call::Remove)
    {
        return fail(errno);
    }
    let answer = unlink();
    if answer == 0 {
        state.removed(&name);
    }
    answer
}

/// Takes a file's name away.
///
/// # Safety
/// As `unlink(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the argument is that of the call that was made.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

/// Takes an empty folder away.
///
/// # Safety
/// As `rmdir(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the argument is that of the call that was made.
    unsafe { unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

/// Makes a folder.
///
/// # Safety
/// As `mkdir(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: libc::mode_t) -> c_int {
    // SAFETY: the arguments are those of the call that was made.
    let make = || narrow(unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) });
    // SAFETY: whoever makes a folder hands in its path.
    let name = unsafe { path_of(path) };
    let Some(disk) = disk_of(name) else { return make() };
    let mut state = disk.state();
    if !name.exists()
        && let Verdict::Fail(errno) = state.judge(Call::Name)
    {
        return fail(errno);
    }
    let answer = make();
    if answer == 0 {
        state.created(name, true);
    }
    answer
}
