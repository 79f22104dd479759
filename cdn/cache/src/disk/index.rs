//! What is on the disk, in memory: the place of each record that holds, by the hash of its key.
//!
//! A hash does not decide: whoever reads a record compares its key. One object costs some 110 bytes here. Counts beside it
//! how much each site has, so that whoever makes room knows whom not to take it from.

use std::collections::HashMap;

use super::segment::Place;
use crate::vary::VARIANTS_MAX;

/// One object per so many bytes of the disk, so that the index stays below three per cent of it.
pub(super) const BYTES_PER_OBJECT: u64 = 4 * 1024;
/// A site that has no more than this part of an even one is poor. All that are hold no more than this part of the disk, so
/// whoever makes room finds some with others, and writes each byte once more at most for each that comes.
const POOR_DIVISOR: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) place: Place,
    pub(super) variant: u32,
    /// Of its site.
    pub(super) share: u16,
    /// Read since it was written: worth to be kept when its segment goes.
    pub(super) is_used: bool,
}

impl Held {
    /// What it takes of the disk: of its bytes, or of the number of objects that it may hold.
    fn weight(&self) -> u64 {
        self.place.record_bytes().max(BYTES_PER_OBJECT)
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    /// The variants of a key, the oldest first.
    held: HashMap<u64, Vec<Held>>,
    objects: u64,
    /// The weight of what each site has.
    weights: HashMap<u16, u64>,
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

    /// Whether a site has so little of a disk of `bytes_max` that others are not to take any of it.
    pub(super) fn is_poor(&self, share: u16, bytes_max: u64) -> bool {
        let sites = self.weights.len() as u64;
        let own = self.weights.get(&share).copied().unwrap_or_default();
        sites > 1 && own <= bytes_max / sites / POOR_DIVISOR
    }

    /// Puts a record of a site in the place of the same variant.
    pub(super) fn put(&mut self, print: u64, place: Place, variant: u32, share: u16) {
        self.remove_where(print, |held| held.variant == variant);
        let held = Held { place, variant, share, is_used: false };
        *self.weights.entry(share).or_default() += held.weight();
        let list = self.held.entry(print).or_default();
        if list.is_empty() {
            // Most keys have one variant: no room for four.
            *list = vec![held];
        } else {
            list.push(held);
        }
        self.objects += 1;
        if list.len() > VARIANTS_MAX {
            let gone = list.remove(0);
            self.objects -= 1;
            self.lighten(&gone);
        }
    }

    fn lighten(&mut self, gone: &Held) {
        if let Some(weight) = self.weights.get_mut(&gone.share) {
            *weight -= gone.weight();
            if *weight == 0 {
                self.weights.remove(&gone.share);
            }
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
        let removed: Vec<Held> = list.extract_if(.., |held| gone(held)).collect();
        if list.is_empty() {
            self.held.remove(&print);
        }
        self.objects -= removed.len() as u64;
        removed.iter().for_each(|gone| self.lighten(gone));
        !removed.is_empty()
    }
}
