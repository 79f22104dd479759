//! Answers that are given before hyper has the request: what a door adds to them.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Door, Peer};
use crate::acme::Challenges;
use crate::http3::AltSvc;
use crate::wire::{Plain, Prompt, Ready};

/// One connection's door.
pub(super) struct AtDoor {
    door: Arc<Door>,
    peer: Peer,
    /// The end of a head that says where HTTP/3 is, once that is known.
    announcing: OnceCell<Bytes>,
}

impl AtDoor {
    /// None where hardly anything is at hand, and looking would be in vain.
    pub(super) fn of(door: &Arc<Door>, peer: Peer) -> Option<Box<dyn Prompt>> {
        let at_door = || Self { door: Arc::clone(door), peer, announcing: OnceCell::new() };
        door.answer.is_brief().then(|| Box::new(at_door()) as Box<dyn Prompt>)
    }

    fn tail(&self) -> Bytes {
        match self.door.alt_svc.as_ref().and_then(AltSvc::value) {
            None => Bytes::from_static(b"\r\n"),
            Some(said) => {
                let tail = || [b"alt-svc: ", said.as_bytes(), b"\r\n\r\n"].concat().into();
                self.announcing.get_or_init(tail).clone()
            }
        }
    }
}

impl Prompt for AtDoor {
    fn answer(&self, plain: &Plain<'_>) -> Option<Ready> {
        // Then answers say that the connection ends.
        if self.door.closing.load(Ordering::Relaxed) {
            return None;
        }
        // An authority that looks whether a name leads here is answered before anybody else hears of it.
        if self.door.challenges.is_some() && Challenges::may_be_asked_at(plain.target) {
            return None;
        }
        let ready = self.door.answer.at_hand(plain, self.peer)?;
        Some(Ready { tail: self.tail(), ..ready })
    }
}
