//! What is on the disk, in memory: the place of each record that holds, by the hash of its key.
//!
//! A hash does not decide: whoever reads a record compares its key. One object costs some 110 bytes here.

use std::collections::HashMap;

use super::segment::Place;
use crate::vary::VARIANTS_MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) place: Place,
    pub(super) variant: u32,
    /// Read since it was written: worth to be kept when its segment goes.
    pub(super) is_used: bool,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    /// The variants of a key, the oldest first.
    held: HashMap<u64, Vec<Held>>,
    objects: u64,
}

impl Index {
    pub(super) fn objects(&self) -> u64 {
        self.objects
    }

    pub(super) fn get(&self, print: u64) -> &[Held] {
        self.held.get(&print).map_or(&[], Vec::as_slice)
    }

    pub(super) fn holds(&self, print: u64, place: Place) -> bool {
        self.get(print).iter().any(|held| held.place == place)
    }

    /// Puts a record in the place of the same variant.
    pub(super) fn put(&mut self, print: u64, place: Place, variant: u32) {
        self.remove_where(print, |held| held.variant == variant);
        let held = Held { place, variant, is_used: false };
        let list = self.held.entry(print).or_default();
        if list.is_empty() {
            // Most keys have one variant: no room for four.
            *list = vec![held];
        } else {
            list.push(held);
        }
        self.objects += 1;
        if list.len() > VARIANTS_MAX {
            list.remove(0);
            self.objects -= 1;
        }
    }

    pub(super) fn mark_used(&mut self, print: u64, place: Place) {
        for held in self.held.get_mut(&print).into_iter().flatten() {
            held.is_used |= held.place == place;
        }
    }

    /// Whether anything was there.
    pub(super) fn remove(&mut self, print: u64) -> bool {
        self.remove_where(print, |_| true)
    }

    /// Whether anything was there.
    pub(super) fn remove_where(&mut self, print: u64, gone: impl Fn(&Held) -> bool) -> bool {
        let Some(list) = self.held.get_mut(&print) else { return false };
        let before = list.len();
        list.retain(|held| !gone(held));
        let removed = before - list.len();
        if list.is_empty() {
            self.held.remove(&print);
        }
        self.objects -= removed as u64;
        removed > 0
    }
}
