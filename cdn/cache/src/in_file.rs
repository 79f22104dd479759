//! Bodies as files in memory, which the kernel sends without anybody copying them.
//!
//! What is written to a socket is copied into it, for each client anew; the pages of a file are lent to it. A body that is
//! large and was asked for again therefore gets a file beside its bytes, as long as there is [`Room`]. Owns those files, and
//! which bodies have one. Refuses to know sockets: whoever can lend pages to one asks for the file
//! ([`crate::cache::PlainGet::lends`]), and all others never hear of it.
//!
//! A file is sealed before anybody sees it. What was lent to a slow client is read minutes later, when the entry may be gone
//! and its memory somebody else's: the pages stay the file's until the last socket has let go of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The smallest body that has one: below it a second system call costs what the copy would.
const BODY_BYTES_MIN: u64 = 32 * 1024;
/// The largest: its file is written between two answers of one thread, in some 0.3 ms.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Files at once, of the 1,024 descriptors that a process has at the least.
const FILES_MAX: usize = 256;
/// Which request makes the file: one page view has two, if it has its picture twice.
const MADE_BY: u32 = 3;
/// How often it is tried again where there was no room.
const TRIED_EVERY: u32 = 64;

/// A body in a file of its own. Dropping it gives its room back.
#[derive(Debug)]
pub struct BodyFile {
    file: File,
    length: u64,
    room: Arc<Room>,
}

impl BodyFile {
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The body's first byte is the file's.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.length, Ordering::Relaxed);
        self.room.files.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of one body's file.
#[derive(Debug, Default)]
pub(crate) struct InFile {
    asked: AtomicU32,
    /// Since the room was last short.
    used: AtomicBool,
    file: ArcSwapOption<BodyFile>,
}

impl InFile {
    /// A place, if a body of so many bytes may have a file.
    pub(crate) fn of(bytes: u64) -> Option<Arc<Self>> {
        (BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&bytes).then(Arc::default)
    }

    /// The file, which this may make.
    pub(crate) fn get(self: &Arc<Self>, body: &[Bytes], room: &Arc<Room>) -> Option<Arc<BodyFile>> {
        if let Some(file) = &*self.file.load() {
            if !self.used.load(Ordering::Relaxed) {
                self.used.store(true, Ordering::Relaxed);
            }
            return Some(Arc::clone(file));
        }
        // One of those who ask at once.
        if self.asked.fetch_add(1, Ordering::Relaxed) % TRIED_EVERY != MADE_BY - 1 {
            return None;
        }
        let file = Arc::new(Room::make(room, body)?);
        self.file.store(Some(Arc::clone(&file)));
        room.note(self);
        Some(file)
    }
}

/// What the files of one cache may take together, beside its memory.
#[derive(Debug)]
pub(crate) struct Room {
    bytes_max: u64,
    bytes: AtomicU64,
    files: AtomicUsize,
    /// Whose file goes when there is no room: the next one that was not used since it was last looked at.
    ring: Mutex<VecDeque<Weak<InFile>>>,
}

impl Room {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: AtomicU64::new(0), files: AtomicUsize::new(0), ring: Mutex::default() }
    }

    /// What they take now.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A file with these bytes; none where there is no room, or where the kernel has none.
    fn make(room: &Arc<Self>, body: &[Bytes]) -> Option<BodyFile> {
        let length = body.iter().map(|piece| piece.len() as u64).sum();
        room.take(length).then_some(())?;
        let memory = memfd_create("souk-body", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let Ok(memory) = memory else {
            room.give_back(length);
            return None;
        };
        // From here on it gives its room back itself.
        let mut made = BodyFile { file: memory.into(), length, room: Arc::clone(room) };
        for piece in body {
            made.file.write_all(piece).ok()?;
        }
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&made.file, seals).ok()?;
        Some(made)
    }

    /// Takes room for a file, that of others if need be. False where all of them are in use.
    fn take(&self, bytes: u64) -> bool {
        // It would take the files of all others, and have no room all the same.
        if bytes > self.bytes_max {
            return false;
        }
        if self.try_take(bytes) {
            return true;
        }
        let mut ring = self.ring.lock();
        for _ in 0..ring.len() {
            let Some(next) = ring.pop_front() else { break };
            let Some(held) = next.upgrade() else { continue };
            if held.used.swap(false, Ordering::Relaxed) {
                ring.push_back(next);
                continue;
            }
            held.file.store(None);
            if self.try_take(bytes) {
                return true;
            }
        }
        false
    }

    fn try_take(&self, bytes: u64) -> bool {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = files <= FILES_MAX && all <= self.bytes_max;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.files.fetch_sub(1, Ordering::Relaxed);
    }

    /// This one has a file.
    fn note(&self, held: &Arc<InFile>) {
        let mut ring = self.ring.lock();
        if ring.len() >= 2 * FILES_MAX {
            // Most of them are of entries that have gone.
            ring.retain(|held| held.upgrade().is_some_and(|held| held.file.load().is_some()));
        }
        ring.push_back(Arc::downgrade(held));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    fn body(letter: u8, bytes: u64) -> Vec<Bytes> {
        let half = usize::try_from(bytes / 2).expect("small");
        vec![vec![letter; half].into(), vec![letter + 1; half].into()]
    }

    fn text(file: &BodyFile) -> Vec<u8> {
        let mut own = file.file.try_clone().expect("a descriptor");
        own.rewind().expect("rewound");
        let mut text = Vec::new();
        own.read_to_end(&mut text).expect("read");
        text
    }

    #[test]
    fn the_third_who_asks_has_a_file_of_the_same_bytes_that_nobody_can_change() {
        assert!(InFile::of(BODY_BYTES_MIN - 1).is_none() && InFile::of(BODY_BYTES_MAX + 1).is_none());
        let (room, held) = (Arc::new(Room::new(1 << 20)), InFile::of(100_000).expect("a place"));
        let body = body(b'a', 100_000);
        assert!(held.get(&body, &room).is_none() && held.get(&body, &room).is_none());
        let file = held.get(&body, &room).expect("a file");
        assert_eq!((file.length(), text(&file) == body.concat()), (100_000, true));
        assert!(Arc::ptr_eq(&file, &held.get(&body, &room).expect("the same")));
        let mut own = file.file.try_clone().expect("a descriptor");
        own.rewind().expect("rewound");
        assert!(own.write_all(b"x").is_err() && own.set_len(7).is_err(), "it is sealed");
        assert_eq!(room.bytes(), 100_000);
        // What somebody is being sent stays, whatever becomes of the body.
        drop(held);
        assert_eq!((text(&file).len(), room.bytes()), (100_000, 100_000));
        drop((file, own));
        assert_eq!((room.bytes(), room.files.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn where_there_is_no_room_the_file_goes_that_nobody_used() {
        let room = Arc::new(Room::new(250_000));
        let asked = |held: &Arc<InFile>, letter| {
            (0..2 * TRIED_EVERY).find_map(|_| held.get(&body(letter, 100_000), &room)).is_some()
        };
        let [one, two, three] = [(); 3].map(|()| InFile::of(100_000).expect("a place"));
        assert!(asked(&one, b'a') && asked(&two, b'c'));
        one.get(&[], &room).expect("it has one");
        assert!(asked(&three, b'e'), "the second was not used since it was made");
        assert!(two.file.load().is_none() && one.file.load().is_some());
        assert_eq!(room.bytes(), 200_000);
        for held in [&one, &three] {
            held.get(&[], &room).expect("it has one");
        }
        drop((one, three));
        assert!(asked(&two, b'c'), "those of bodies that have gone leave their room");
        assert_eq!(room.bytes(), 100_000);
    }

    #[test]
    fn never_more_files_than_there_may_be() {
        let room = Arc::new(Room::new(u64::MAX / 2));
        let bodies: Vec<_> = (0..FILES_MAX + 20).map(|_| InFile::of(40_000).expect("a place")).collect();
        let small = body(b'a', 40_000);
        for held in &bodies {
            for _ in 0..MADE_BY {
                held.get(&small, &room);
            }
            assert!(room.files.load(Ordering::Relaxed) <= FILES_MAX);
        }
        let have = bodies.iter().filter(|held| held.file.load().is_some()).count();
        assert_eq!((have, room.bytes()), (FILES_MAX, 40_000 * FILES_MAX as u64));
    }
}
