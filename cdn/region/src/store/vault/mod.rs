//! The vault: what of a shopper stands in the store is sealed, under a key that can be destroyed.
//!
//! ```text
//! key of keys (a file) ── wraps ──▶ key of a site ── wraps ──▶ key of a shopper ── seals ──▶ a field of a row
//! ```
//!
//! The two lower kinds of keys are in the [`keyring`], which is no part of the store's backups. A shopper is found there
//! by a keyed hash of the customer's number; the store's own tables know the shopper by a random number only. So when the
//! row of the keyring is gone, nothing leads from a person to rows of an older copy of the store, and nothing opens them.
//! Why so: docs/decisions/2026-11-30-a-key-per-shopper.md. What is a shopper's, and where it lies: docs/PRIVACY.md.
//!
//! It knows keys, fields and texts; which fields of an order are a shopper's, [`super::shopper`] knows. Its methods block.

mod cipher;
mod copied;
mod kek;
mod keyring;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use souk_commerce::id::SiteId;

use super::StoreError;
use super::engine::Engine;
use cipher::{Cipher, RawKey};
pub(super) use copied::{KeyRows, is_of_keyring};
use kek::Kek;
pub(crate) use kek::KekFile;
pub(super) use keyring::Keyring;
use keyring::SubjectRow;

/// What a sealed text begins with, and no customer's number that we have not sealed is taken for one: what does not open is
/// not shown.
const MARK: &str = "souk1:";
/// Keys of shoppers that are held to read with: at 200 bytes each, 1 MB. Above it all are dropped, and each is a look-up away.
const SUBJECTS_HELD_MAX: usize = 4_096;
/// Sites of a region whose keys are held. A site's keys are 200 bytes.
const SITES_HELD_MAX: usize = 100_000;

/// By which the store's tables know a shopper: random, and without the keyring it leads nowhere.
pub(crate) type SubjectId = [u8; 16];

/// Whose a row is, as far as the row itself knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) subject: Option<SubjectId>,
    /// False: an older version wrote it, and what is the shopper's stands in it as it is.
    pub(super) is_sealed: bool,
}

/// A shopper with a key.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) id: SubjectId,
    site: SiteId,
    cipher: Arc<Cipher>,
}

/// The keys of a site.
struct SiteKeys {
    cipher: Cipher,
    /// Of customers' numbers, to find their keys by.
    names: cipher::Keyed,
    /// Of the same numbers, for the audit log: it stays when the shopper is gone, and so must lead to nothing else.
    traces: cipher::Keyed,
}

impl SiteKeys {
    fn of(key: &RawKey) -> Self {
        Self {
            cipher: Cipher::new(key),
            names: cipher::Keyed::derived(key, "names"),
            traces: cipher::Keyed::derived(key, "traces"),
        }
    }
}

struct Inner {
    kek: Kek,
    keyring: Keyring,
    sites: Mutex<HashMap<SiteId, Arc<SiteKeys>>>,
    subjects: Mutex<HashMap<SubjectId, Subject>>,
    is_new: bool,
}

/// A handle; clones share keys and keyring.
#[derive(Clone)]
pub(super) struct Vault(Arc<Inner>);

fn foreign(what: &str) -> StoreError {
    StoreError::Vault(format!(
        "{what} does not open: the key of keys is another one, or the row was changed. Put the file that the region had \
         before in its place (docs/PRIVACY.md)"
    ))
}

impl Vault {
    /// Opens the keyring, and wraps what is wrapped under an older key of keys under the present one.
    pub(super) fn open(file: &KekFile, keyring: Keyring) -> Result<Self, StoreError> {
        let before = keyring.kek()?;
        // A key that is made anew opens nothing that there is.
        let kek = file.read(before.is_none(), rand::random).map_err(StoreError::Vault)?;
        let is_new = before.is_none();
        let before = match before {
            Some(before) => before,
            // Another process over the same database may begin at the same moment, with a file of its own.
            None => keyring.begin(kek.current())?,
        };
        if !kek.knows(&before) {
            return Err(StoreError::Vault(format!(
                "the key of keys is not the one that this store's keyring was made with ({before}). Put the file there that \
                 the region had before; several processes over one database need the same ([vault] key_file)"
            )));
        }
        let vault = Self(Arc::new(Inner {
            kek,
            keyring,
            sites: Mutex::default(),
            subjects: Mutex::default(),
            is_new,
        }));
        if before != vault.0.kek.current() {
            vault.rewrap()?;
        }
        Ok(vault)
    }

    fn rewrap(&self) -> Result<(), StoreError> {
        let Inner { kek, keyring, .. } = &*self.0;
        let sites = keyring.sites()?;
        for (site, row) in sites.iter().filter(|(_, row)| row.kek != kek.current()) {
            let key = kek.unwrap(site, row).ok_or_else(|| foreign(&format!("the key of site {site}")))?;
            keyring.replace_site(site, row, &kek.wrap(site, &key))?;
        }
        // Last: a crash before it does all of it again, which changes nothing.
        keyring.set_kek(kek.current())?;
        let (sites, kek) = (sites.len(), kek.current());
        tracing::info!(
            sites,
            kek,
            "the keys of sites are wrapped under the present key of keys: older lines of its file are not needed any more"
        );
        Ok(())
    }

    /// The keys of a site; made with its first shopper.
    fn site(&self, site: &SiteId) -> Result<Arc<SiteKeys>, StoreError> {
        if let Some(keys) = self.0.sites.lock().get(site) {
            return Ok(Arc::clone(keys));
        }
        let Inner { kek, keyring, sites, .. } = &*self.0;
        let row = match keyring.site(site)? {
            Some(row) => row,
            None => {
                keyring.add_site(site, &kek.wrap(site, &cipher::fresh()))?;
                // Another process may have been first: what counts is what is there.
                keyring.site(site)?.ok_or_else(|| foreign("a key that was just made"))?
            }
        };
        let key = kek.unwrap(site, &row).ok_or_else(|| foreign(&format!("the key of site {site}")))?;
        let keys = Arc::new(SiteKeys::of(&key));
        let mut held = sites.lock();
        if held.len() >= SITES_HELD_MAX {
            held.clear();
        }
        held.insert(site.clone(), Arc::clone(&keys));
        Ok(keys)
    }

    fn unwrap(&self, keys: &SiteKeys, site: &SiteId, row: &SubjectRow) -> Result<Subject, StoreError> {
        let key = keys.cipher.open_key(&row.wrapped, &subject_aad(site, &row.id));
        let key = key.ok_or_else(|| foreign("the key of a shopper"))?;
        Ok(Subject { id: row.id, site: site.clone(), cipher: Arc::new(Cipher::new(&key)) })
    }

    /// The shopper's key, if there is one. Always asked of the keyring: another process may have destroyed it.
    pub(super) fn find(&self, site: &SiteId, customer: &str) -> Result<Option<Subject>, StoreError> {
        let keys = self.site(site)?;
        let row = self.0.keyring.subject(site, &keys.names.of(customer))?;
        row.map(|row| self.unwrap(&keys, site, &row)).transpose()
    }

    /// The shopper's key; made, and on the disk, if there is none.
    pub(super) fn subject(&self, site: &SiteId, customer: &str) -> Result<Subject, StoreError> {
        if let Some(subject) = self.find(site, customer)? {
            return Ok(subject);
        }
        let keys = self.site(site)?;
        let id: SubjectId = rand::random();
        let wrapped = keys.cipher.seal_key(&cipher::fresh(), &subject_aad(site, &id));
        self.0.keyring.add_subject(site, &keys.names.of(customer), &SubjectRow { id, wrapped })?;
        // Two orders of one shopper may come at once: both take what is there.
        self.find(site, customer)?.ok_or_else(|| foreign("a key that was just made"))
    }

    /// The key of a number in a row; none: it was destroyed.
    fn by_id(&self, site: &SiteId, id: &SubjectId) -> Result<Option<Subject>, StoreError> {
        if let Some(subject) = self.0.subjects.lock().get(id) {
            // A row of one site never opens with the key of another one's shopper.
            return Ok(Some(subject.clone()).filter(|subject| subject.site == *site));
        }
        let keys = self.site(site)?;
        let Some(row) = self.0.keyring.subject_by_id(site, id)? else { return Ok(None) };
        let subject = self.unwrap(&keys, site, &row)?;
        let mut held = self.0.subjects.lock();
        if held.len() >= SUBJECTS_HELD_MAX {
            held.clear();
        }
        held.insert(*id, subject.clone());
        Ok(Some(subject))
    }

    /// Whether a number has its key. Asked of the keyring: another process may have destroyed it.
    pub(super) fn has(&self, site: &SiteId, id: &SubjectId) -> Result<bool, StoreError> {
        Ok(self.0.keyring.subject_by_id(site, id)?.is_some())
    }

    /// Whether the keyring was made at this start.
    pub(super) fn is_new(&self) -> bool {
        self.0.is_new
    }

    /// Numbers whose keys were destroyed, after `after`, a page at a time. They lead to nobody.
    pub(super) fn destroyed(
        &self,
        after: Option<&SubjectId>,
        limit: usize,
    ) -> Result<Vec<(SiteId, SubjectId)>, StoreError> {
        let rows = self.0.keyring.destroyed(after, limit)?;
        let named = |(site, id): (String, SubjectId)| {
            site.parse().map(|site| (site, id)).map_err(|e| StoreError::corrupt("key_destroyed", e))
        };
        rows.into_iter().map(named).collect()
    }

    /// Destroys a shopper's key, here and in the keyring: nothing that it has sealed can be read again, wherever it lies.
    pub(super) fn destroy(&self, site: &SiteId, id: &SubjectId) -> Result<(), StoreError> {
        self.0.subjects.lock().remove(id);
        self.0.keyring.remove_subject(site, id)
    }

    /// What the audit log says of a shopper: the same for the same one, and without the site's key nobody's name.
    pub(super) fn trace(&self, site: &SiteId, customer: &str) -> Result<[u8; 32], StoreError> {
        Ok(self.site(site)?.traces.of(customer))
    }

    /// What a shopper's question is compared by. Its own hash would let whoever has a copy of the store, and a guess of the
    /// customer's number, see that the guess is right.
    pub(super) fn question(
        &self,
        site: &SiteId,
        customer: Option<&str>,
        hash: &[u8; 32],
    ) -> Result<[u8; 32], StoreError> {
        let subject = match customer {
            Some(customer) => self.find(site, customer)?,
            None => None,
        };
        Ok(subject.map_or(*hash, |subject| subject.question(hash)))
    }

    /// A text of nobody who has a number, sealed under the site's key.
    pub(super) fn seal_of_site(&self, site: &SiteId, text: &str, place: &str) -> Result<String, StoreError> {
        let sealed = self.site(site)?.cipher.seal(text.as_bytes(), &field_aad(site, place));
        Ok(format!("{MARK}{}", URL_SAFE_NO_PAD.encode([&[OF_SITE], &*sealed].concat())))
    }

    /// What was sealed; none: its key was destroyed. A text that is not sealed is itself: it is of an older version.
    pub(super) fn open_text(
        &self,
        site: &SiteId,
        text: &str,
        place: &str,
    ) -> Result<Option<String>, StoreError> {
        let Some(sealed) = text.strip_prefix(MARK) else { return Ok(Some(text.to_owned())) };
        let sealed = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| foreign("a sealed text"))?;
        let aad = field_aad(site, place);
        let opened = match sealed.split_first() {
            Some((&OF_SITE, sealed)) => self.site(site)?.cipher.open(sealed, &aad),
            Some((&OF_SUBJECT, rest)) => {
                let (id, sealed) = rest.split_first_chunk::<16>().ok_or_else(|| foreign("a sealed text"))?;
                let Some(subject) = self.by_id(site, id)? else { return Ok(None) };
                subject.cipher.open(sealed, &aad)
            }
            _ => None,
        };
        let opened = opened.ok_or_else(|| foreign("a sealed text"))?;
        String::from_utf8(opened).map(Some).map_err(|_| foreign("a sealed text"))
    }
}

/// Whose key a text is sealed under.
const OF_SITE: u8 = 1;
const OF_SUBJECT: u8 = 2;

impl Subject {
    /// A text of this shopper's. `place`: which row and field it is for; it opens nowhere else.
    pub(super) fn seal(&self, text: &str, place: &str) -> String {
        let sealed = self.cipher.seal(text.as_bytes(), &field_aad(&self.site, place));
        format!("{MARK}{}", URL_SAFE_NO_PAD.encode([&[OF_SUBJECT], &self.id[..], &sealed].concat()))
    }

    /// See [`Vault::question`].
    pub(super) fn question(&self, hash: &[u8; 32]) -> [u8; 32] {
        self.cipher.questions.of_bytes(hash)
    }
}

/// Why a store that came to a place could not be read there; none: it can. Makes nothing. `engine`: of the server whose place it is.
pub(super) fn lacking(
    dir: &Path,
    engine: Option<&dyn Engine>,
    file: &KekFile,
) -> Result<Option<String>, StoreError> {
    let (kek, place) = match engine {
        None => (Keyring::kek_in(dir)?, format!("there is no keyring in {}", dir.display())),
        Some(engine) => (Keyring::kek_at(engine)?, "there is no keyring in the database".to_owned()),
    };
    let Some(kek) = kek else { return Ok(Some(place)) };
    Ok(match file.read(false, rand::random) {
        Err(why) => Some(why),
        Ok(known) if known.knows(&kek) => None,
        Ok(_) => Some(format!("the keyring there was made with another key of keys ({kek})")),
    })
}

/// Whether these bytes hold a text that the vault has made.
pub(super) fn holds_sealed(bytes: &[u8]) -> bool {
    bytes.windows(MARK.len()).any(|part| part == MARK.as_bytes())
}

/// Whether a text is one that the vault has made.
pub(super) fn is_sealed(text: &str) -> bool {
    text.starts_with(MARK)
}

fn subject_aad(site: &SiteId, id: &SubjectId) -> Vec<u8> {
    [b"souk vault 1\0subject\0", site.as_str().as_bytes(), b"\0", &id[..]].concat()
}

fn field_aad(site: &SiteId, place: &str) -> Vec<u8> {
    [b"souk vault 1\0field\0", site.as_str().as_bytes(), b"\0", place.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
