//! The one way in which this crate's types become bytes: CBOR with numbered fields, so that a newer node may add a
//! field that an older one skips.
//!
//! Decoding is bounded by the bytes it is given and by the limit of the type: nothing is allocated for a length
//! that the bytes only claim, and what follows the value is an error.

use minicbor::{Decode, Decoder, Encode, Encoder};

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{bytes} bytes are more than the {bytes_max} that {what} may have")]
    TooLong { what: &'static str, bytes: usize, bytes_max: usize },
    #[error("not {what}: {reason}")]
    Malformed { what: &'static str, reason: String },
}

pub(crate) fn to_bytes<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing into a Vec cannot fail, and no type here refuses to be encoded")
}

pub(crate) fn from_bytes<'b, T: Decode<'b, ()>>(
    what: &'static str,
    bytes: &'b [u8],
    bytes_max: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > bytes_max {
        return Err(DecodeError::TooLong { what, bytes: bytes.len(), bytes_max });
    }
    let malformed = |reason: String| DecodeError::Malformed { what, reason };
    let mut decoder = Decoder::new(bytes);
    let value = decoder.decode().map_err(|e| malformed(e.to_string()))?;
    let rest = bytes.len() - decoder.position();
    if rest > 0 {
        return Err(malformed(format!("{rest} bytes follow it")));
    }
    Ok(value)
}

/// `#[cbor(with = "crate::codec::json")]`: a value whose readers want JSON travels as the bytes of its JSON.
pub(crate) mod json {
    use super::{Decoder, Encoder};

    pub(crate) fn encode<C, T: serde::Serialize, W: minicbor::encode::Write>(
        value: &T,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let json = serde_json::to_vec(value).map_err(minicbor::encode::Error::message)?;
        e.bytes(&json)?.ok()
    }

    pub(crate) fn decode<C, T: serde::de::DeserializeOwned>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<T, minicbor::decode::Error> {
        let at = d.position();
        serde_json::from_slice(d.bytes()?).map_err(|e| minicbor::decode::Error::message(e.to_string()).at(at))
    }
}

#[cfg(test)]
mod tests {
    //! Every type that travels: it comes back as it was, an older reader skips a newer field, and whatever else
    //! arrives is an error and never a panic.

    use proptest::prelude::*;

    use super::DecodeError;
    use crate::call::{Ahead, CheckoutRequest, JournalBatch, Request, Response, RunningChain};
    use crate::cart::{Cart, LineKey};
    use crate::clock::Hlc;
    use crate::feed::{Asset, AssetChange, PriceChange, ProductChange, PurgeChange, StockChange};
    use crate::id::{CartId, Digest, Epoch, NodeId, OrderId};
    use crate::journal::{CallIds, Entry, Event, Level, Outcome, RecordingBlob, Source};
    use crate::money::Minor;
    use crate::op::{OPERATION_BYTES_MAX, Operation};
    use crate::order::{Note, Order, OrderState};
    use crate::product::{PriceRow, Product, StockHint};
    use crate::purge::Forget;
    use crate::quote::{AdjustEffect, Adjustment, Fallback, Quote, Target};
    use crate::site::{Guard, Hook};

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a valid name")
    }

    fn product() -> Product {
        Product {
            sku: name("MUG"),
            title: "Mug “Ünïcode”".to_owned(),
            description: "Holds tea.".to_owned(),
            tags: vec!["mug".to_owned(), "new".to_owned()],
            attributes: vec![("colour".to_owned(), "blue".to_owned())],
            image: Some("/mug.jpg".to_owned()),
        }
    }

    fn quote() -> Quote {
        let listed = crate::product::Listed {
            product: product().into(),
            price: PriceRow::of(Minor(255)),
            price_version: 3,
            stock: StockHint::InStock,
        };
        let lines = vec![(name::<LineKey>("MUG"), 2, listed)];
        let mut quote = Quote::base(name("GBP"), Some(name("FR")), lines).expect("fits");
        let said = Adjustment {
            target: Target::Line(0),
            effect: AdjustEffect::Percent(-500),
            code: "quantity_break".to_owned(),
            label: "2 or more: 5 % off".to_owned(),
        };
        quote.apply(&name("pricing"), 1, vec![said], &[None], &Guard::default()).expect("within the guard");
        quote.fallbacks.push(Fallback {
            plugin: name("other"),
            release: 2,
            hook: Hook::Pricing,
            reason: "trap".to_owned(),
            call: Some(CallIds::new(7).next(1)),
            instead: Some(1),
        });
        quote.unavailable.push(name("GONE~cart"));
        quote
    }

    fn order() -> Order {
        Order {
            id: OrderId([2; 16]),
            site: name("shop"),
            cart: CartId([1; 16]),
            state: OrderState::Placed,
            quote: quote(),
            notes: vec![Note { plugin: name("gate"), code: "gift".to_owned(), text: "Wrap it.".to_owned() }],
            placed_ms: 5,
            country: Some(name("FR")),
            customer: Some("c-7".to_owned()),
        }
    }

    fn operation() -> Operation {
        let mut cart = Cart::new();
        let mut edit = cart.edit(NodeId(1), Epoch(2), Hlc::at(9));
        edit.add(crate::cart::Entry::Line(name("MUG")), 2).expect("room");
        edit.set(crate::cart::Entry::Line(name("MUG~cart")), 1).expect("room");
        edit.country(name("FR"));
        let first = edit.finish();
        cart.apply(&first);
        let mut edit = cart.edit(NodeId(1), Epoch(2), Hlc::at(10));
        edit.set(crate::cart::Entry::Line(name("MUG")), 7).expect("room");
        edit.remove(crate::cart::Entry::Line(name("MUG~cart")));
        Operation::Cart { site: name("shop"), cart: CartId([1; 16]), at_ms: 9, delta: edit.finish() }
    }

    fn source(hook: Option<Hook>) -> Source {
        Source { plugin: name("pricing"), release: 3, hook }
    }

    fn entries() -> Vec<Entry> {
        let entry = |source, call, event| Entry {
            site: name("shop"),
            at_ms: 5,
            node: Some(NodeId(1)),
            source,
            call,
            event,
        };
        let id = CallIds::new(1).next(5);
        let text = || "text".to_owned();
        let call = |outcome| Event::Call { duration_us: 40, outcome };
        vec![
            entry(Some(source(None)), None, Event::Log { level: Level::Warn, text: text() }),
            entry(Some(source(Some(Hook::Pricing))), Some(id), call(Outcome::Ok)),
            entry(
                Some(source(Some(Hook::Catalog))),
                Some(id),
                call(Outcome::Refused { code: text(), message: text() }),
            ),
            entry(Some(source(Some(Hook::Checkout))), Some(id), call(Outcome::Failed { fault: text() })),
            entry(Some(source(None)), Some(id), Event::Fault { fault: text(), detail: text() }),
            entry(Some(source(Some(Hook::Cart))), Some(id), Event::Recorded { bytes: 9 }),
            entry(None, None, Event::Dropped { count: 4 }),
        ]
    }

    fn requests() -> Vec<Request> {
        let (site, cart) = (name("shop"), CartId([1; 16]));
        vec![
            Request::FetchCart { site: name("shop"), cart, min: None },
            Request::FetchCart { site: name("shop"), cart, min: Some((NodeId(1), Epoch(2), 3)) },
            Request::Checkout(CheckoutRequest {
                site,
                cart,
                after: Some((Epoch(2), 3)),
                idempotency_key: "key".to_owned(),
                request_hash: [9; 32],
                country: Some(name("FR")),
                language: "fr".to_owned(),
                customer: None,
                segments: vec!["trade".to_owned()],
                quoted_total: Minor(485),
                now_ms: 7,
                payment: Some("pm_card_visa".parse().expect("a payment method")),
            }),
            Request::Order { site: name("shop"), order: OrderId([2; 16]) },
            Request::Blob { digest: Digest::of(b"x") },
            Request::Journal(JournalBatch { life: 3, first: 7, entries: entries() }),
            Request::Recording(RecordingBlob {
                id: CallIds::new(1).next(5),
                site: name("shop"),
                source: source(Some(Hook::Cart)),
                at_ms: 5,
                bytes: vec![1, 2],
            }),
            Request::Running {
                whole: true,
                chains: vec![
                    RunningChain { site: name("shop"), version: 7, why: None, ahead: None },
                    RunningChain {
                        site: name("other"),
                        version: 0,
                        why: Some("text".to_owned()),
                        ahead: Some(vec![Ahead {
                            component: Digest::of(b"x"),
                            compiled: false,
                            refused: true,
                            why: Some("text".to_owned()),
                        }]),
                    },
                ],
            },
        ]
    }

    fn responses() -> Vec<Response> {
        let text = || "text".to_owned();
        vec![
            Response::Cart { state: None, order: None, pending: None },
            Response::Cart {
                state: Some(Cart::new().to_bytes()),
                order: Some(OrderId([2; 16])),
                pending: Some(OrderId([3; 16])),
            },
            Response::Placed(order()),
            Response::PriceChanged(quote()),
            Response::OutOfStock { sku: name("MUG"), available: 1 },
            Response::Refused { code: text(), message: text() },
            Response::KeyReused,
            Response::CartEmpty,
            Response::CartSealed { order: OrderId([2; 16]) },
            Response::NotFound,
            Response::Blob(vec![0, 1, 255]),
            Response::NotYet { retry_after_ms: 50 },
            Response::Failed { code: text(), message: text() },
            Response::Noted,
            Response::Pending(order()),
            Response::Declined { code: text() },
        ]
    }

    /// One reader, with its type forgotten: bytes in, the bytes that it would write itself out.
    type Reader = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

    fn samples() -> Vec<(Reader, Vec<u8>)> {
        let asset = Asset::new(Digest::of(b"x"), 1, "text/css".to_owned());
        let (site, sku) = (name("shop"), name("MUG"));
        let mut samples: Vec<(Reader, Vec<u8>)> = vec![
            (|b| Operation::from_bytes(b).map(|v| v.to_bytes()), operation().to_bytes()),
            (
                |b| ProductChange::from_bytes(b).map(|v| v.to_bytes()),
                ProductChange { site: name("shop"), sku: name("MUG"), product: Some(product()) }.to_bytes(),
            ),
            (
                |b| ProductChange::from_bytes(b).map(|v| v.to_bytes()),
                ProductChange { site: name("shop"), sku: name("MUG"), product: None }.to_bytes(),
            ),
            (
                |b| PriceChange::from_bytes(b).map(|v| v.to_bytes()),
                PriceChange { site: name("shop"), sku: name("MUG"), price: Some(PriceRow::of(Minor(255))) }
                    .to_bytes(),
            ),
            (
                |b| StockChange::from_bytes(b).map(|v| v.to_bytes()),
                StockChange { site, sku, hint: StockHint::Low(3) }.to_bytes(),
            ),
            (
                |b| PurgeChange::from_bytes(b).map(|v| v.to_bytes()),
                PurgeChange {
                    site: name("shop"),
                    forget: Forget { tags: vec!["red".to_owned()], ..Forget::default() },
                    carts: vec![CartId([7; 16]).tag(&name("shop"))],
                }
                .to_bytes(),
            ),
            (
                |b| AssetChange::from_bytes(b).map(|v| v.to_bytes()),
                AssetChange { site: name("shop"), path: "/a.css".to_owned(), asset: Some(asset) }.to_bytes(),
            ),
        ];
        let request: Reader = |b| Request::from_bytes(b).map(|v| v.to_bytes());
        let response: Reader = |b| Response::from_bytes(b).map(|v| v.to_bytes());
        samples.extend(requests().iter().map(|r| (request, r.to_bytes())));
        samples.extend(responses().iter().map(|r| (response, r.to_bytes())));
        samples
    }

    #[test]
    fn everything_comes_back_as_it_was() {
        for (read, bytes) in samples() {
            assert_eq!(read(&bytes).as_ref(), Ok(&bytes));
        }
        for request in requests() {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request));
        }
        for response in responses() {
            assert_eq!(Response::from_bytes(&response.to_bytes()), Ok(response));
        }
        assert_eq!(Operation::from_bytes(&operation().to_bytes()), Ok(operation()));
    }

    #[test]
    fn a_cut_or_lengthened_message_is_refused() {
        for (read, bytes) in samples() {
            for end in 0..bytes.len() {
                assert!(read(&bytes[..end]).is_err(), "the first {end} of {bytes:?}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(matches!(read(&longer), Err(DecodeError::Malformed { .. })));
        }
        let too_long = vec![0; OPERATION_BYTES_MAX + 1];
        assert!(matches!(Operation::from_bytes(&too_long), Err(DecodeError::TooLong { .. })));
    }

    #[test]
    fn a_field_that_only_newer_nodes_know_is_skipped() {
        // A stock change is an array of three; a newer node may write a fourth.
        let change = StockChange { site: name("shop"), sku: name("MUG"), hint: StockHint::Out };
        let mut newer = change.to_bytes();
        assert_eq!(newer[0], 0x83);
        newer[0] = 0x84;
        newer.extend([0x82, 0x01, 0x61, b'x']);
        assert_eq!(StockChange::from_bytes(&newer), Ok(change));
    }

    #[test]
    fn a_node_that_does_not_speak_of_what_is_to_come_is_understood_and_so_is_a_newer_one() {
        #[derive(Debug, PartialEq, minicbor::Encode, minicbor::Decode)]
        struct Older {
            #[n(0)]
            site: crate::id::SiteId,
            #[n(1)]
            version: u64,
            #[n(2)]
            why: Option<String>,
        }
        for why in [None, Some("text".to_owned())] {
            let older = Older { site: name("shop"), version: 7, why: why.clone() };
            let read: RunningChain =
                minicbor::decode(&minicbor::to_vec(&older).expect("CBOR")).expect("read");
            assert_eq!(read, RunningChain { site: name("shop"), version: 7, why, ahead: None });
            let ahead = Ahead { component: Digest::of(b"x"), compiled: true, refused: false, why: None };
            let newer = minicbor::to_vec(RunningChain { ahead: Some(vec![ahead]), ..read }).expect("CBOR");
            assert_eq!(minicbor::decode::<Older>(&newer).expect("read"), older);
        }
    }

    #[test]
    fn a_length_that_is_only_claimed_allocates_nothing() {
        // An array, a map, a byte string and a text of 2^63 each, and an array of arrays of arrays…
        for head in [0x9b, 0xbb, 0x5b, 0x7b] {
            let bytes =
                [&[0x82, 0x00, 0x84][..], &[head, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
            for (read, _) in samples() {
                assert!(read(&bytes).is_err());
                assert!(read(&bytes[3..]).is_err());
            }
            assert!(Cart::from_bytes(&bytes).is_err());
        }
        for (read, _) in samples() {
            assert!(read(&vec![0x81; OPERATION_BYTES_MAX]).is_err());
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            which in any::<prop::sample::Index>(),
            flip in any::<u8>(),
        ) {
            let samples = samples();
            for (read, _) in &samples {
                let _ = read(&noise);
            }
            let (read, mut bytes) = samples[which.index(samples.len())].clone();
            let at = at.index(bytes.len());
            bytes[at] = flip;
            if let Ok(again) = read(&bytes) {
                // What was understood means the same when it is passed on.
                prop_assert_eq!(read(&again), Ok(again));
            }
        }
    }
}
