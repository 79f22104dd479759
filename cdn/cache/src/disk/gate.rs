//! Where the tier touches a disk. In a node this is nothing; a test makes a disk of it that hangs or fails.

use std::io;

/// What the disk is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Read,
    Write,
    Sync,
    Empty,
}

#[cfg(not(test))]
#[derive(Debug, Default)]
pub(super) struct Gate(());

#[cfg(not(test))]
impl Gate {
    pub(super) fn pass(&self, _doing: Doing) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) use self::faulty::Gate;

#[cfg(test)]
mod faulty {
    use std::collections::HashMap;

    use parking_lot::{Condvar, Mutex};

    use super::{Doing, io};

    /// What becomes of those that come.
    #[derive(Clone, Copy, Debug)]
    enum Fault {
        /// So many more are held until they are let go.
        Hangs(usize),
        Fails,
    }

    #[derive(Debug, Default)]
    pub(in crate::disk) struct Gate {
        faults: Mutex<HashMap<Doing, Fault>>,
        held: Mutex<usize>,
        changed: Condvar,
    }

    impl Gate {
        pub(in crate::disk) fn pass(&self, doing: Doing) -> io::Result<()> {
            let mut faults = self.faults.lock();
            match faults.get_mut(&doing) {
                None | Some(Fault::Hangs(0)) => return Ok(()),
                Some(Fault::Fails) => return Err(io::Error::other("as the test wants")),
                Some(Fault::Hangs(left)) => *left -= 1,
            }
            *self.held.lock() += 1;
            while faults.contains_key(&doing) {
                self.changed.wait(&mut faults);
            }
            *self.held.lock() -= 1;
            Ok(())
        }

        /// The next `times` that come hang.
        pub(in crate::disk) fn hang(&self, doing: Doing, times: usize) {
            self.faults.lock().insert(doing, Fault::Hangs(times));
        }

        pub(in crate::disk) fn fail(&self, doing: Doing) {
            self.faults.lock().insert(doing, Fault::Fails);
        }

        /// All go on, and who comes from now on.
        pub(in crate::disk) fn open(&self) {
            self.faults.lock().clear();
            self.changed.notify_all();
        }

        /// Threads that hang here now.
        pub(in crate::disk) fn held(&self) -> usize {
            *self.held.lock()
        }
    }
}
