//! What a site lets its cache do: named switches, and two named sets of them.
//!
//! RFC 9111 leaves a cache much freedom, and a shop has less of it than a public library: what is right for a page that
//! everybody sees leaks a session when it is wrong once. So everything that needs trust in the upstream's words stands
//! here, off unless it is asked for. Whoever makes a [`crate::Asked`] chooses, route by route.

/// Switches of the cache for one resource. The default is [`Policy::SAFE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Keep nothing, and let nobody wait for what another is asking: for what is each shopper's own.
    pub pass: bool,
    /// Guess lifetimes from `Last-Modified` (RFC 9111 section 4.2.2).
    pub heuristic_freshness: bool,
    /// Store explicitly fresh responses that set cookies, and replay the cookie to everybody (section 7.3).
    pub store_set_cookie: bool,
    /// Obey what clients ask of caches beyond `only-if-cached` and `no-store` (section 5.2.1).
    pub client_directives: bool,
    /// Compare `Accept-Language` by weight and not by order, and take `Content-Language` for the outcome of the
    /// negotiation (section 4.1).
    pub negotiate_languages: bool,
    /// Let the answer to a POST that says where and for how long it holds answer GETs (RFC 9110 section 9.3.3).
    pub store_posts: bool,
    /// Forward a range that nothing stored can answer, store the part that comes back, and complete it later
    /// (sections 3.3 and 3.4). Off, a range starts a fetch of the whole and reads along.
    pub store_parts: bool,
    /// Answer with encodings that are made of stored texts, where a client takes them ([`crate::coding`]).
    pub compress: bool,
}

impl Policy {
    /// The names of the switches that are on.
    pub fn switches(&self) -> impl Iterator<Item = &'static str> {
        // Taken apart, so that a new switch cannot be forgotten here.
        let Self {
            pass,
            heuristic_freshness,
            store_set_cookie,
            client_directives,
            negotiate_languages,
            store_posts,
            store_parts,
            compress,
        } = *self;
        [
            (pass, "pass"),
            (heuristic_freshness, "heuristic_freshness"),
            (store_set_cookie, "store_set_cookie"),
            (client_directives, "client_directives"),
            (negotiate_languages, "negotiate_languages"),
            (store_posts, "store_posts"),
            (store_parts, "store_parts"),
            (compress, "compress"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
    }

    /// For shops: nothing that one careless header of an upstream could turn into a leak.
    pub const SAFE: Self = Self {
        pass: false,
        heuristic_freshness: false,
        store_set_cookie: false,
        client_directives: false,
        negotiate_languages: false,
        store_posts: false,
        store_parts: false,
        compress: false,
    };
    /// All that RFC 9111 lets a shared cache do: for upstreams whose every field is meant.
    pub const STRICT: Self = Self {
        pass: false,
        heuristic_freshness: true,
        store_set_cookie: true,
        client_directives: true,
        negotiate_languages: true,
        store_posts: true,
        store_parts: true,
        compress: false,
    };
    /// Nothing is kept and nobody waits: each request is the upstream's.
    pub const PASS: Self = Self { pass: true, ..Self::SAFE };
}
