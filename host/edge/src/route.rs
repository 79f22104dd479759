//! Pure: (method, path) -> what is asked for.
//!
//! A path is decoded once, segment by segment; whatever two readers could read differently is refused. Knows the
//! shape of the shopper API and nothing of its meaning. Called by [`crate::serve`].

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;
use souk_commerce::cart::LineKey;
use souk_commerce::id::{CartId, Coupon, OrderId, Sku};

use crate::rescue::{Problem, Refusal};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    ListProducts,
    ShowProduct(Sku),
    CreateCart,
    ShowCart(CartId),
    EmptyCart(CartId),
    ChangeCart(CartId),
    AddLine(CartId),
    SetLine(CartId, LineKey),
    RemoveLine(CartId, LineKey),
    PutCoupon(CartId, Coupon),
    RemoveCoupon(CartId, Coupon),
    ShowQuote(CartId),
    ShowReservation(CartId),
    Reserve(CartId),
    GiveUpReservation(CartId),
    Checkout,
    ShowOrder(OrderId),
    /// A file of the site, by its decoded path.
    Asset(String),
}

impl Route {
    /// The route without its particulars: the label of metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ListProducts => "list_products",
            Self::ShowProduct(_) => "show_product",
            Self::CreateCart => "create_cart",
            Self::ShowCart(_) => "show_cart",
            Self::EmptyCart(_) => "empty_cart",
            Self::ChangeCart(_) => "change_cart",
            Self::AddLine(_) => "add_line",
            Self::SetLine(..) => "set_line",
            Self::RemoveLine(..) => "remove_line",
            Self::PutCoupon(..) => "put_coupon",
            Self::RemoveCoupon(..) => "remove_coupon",
            Self::ShowQuote(_) => "quote",
            Self::ShowReservation(_) => "show_reservation",
            Self::Reserve(_) => "reserve",
            Self::GiveUpReservation(_) => "give_up_reservation",
            Self::Checkout => "checkout",
            Self::ShowOrder(_) => "show_order",
            Self::Asset(_) => "asset",
        }
    }

    /// The decoded path, whatever the method; none if it is the API's.
    pub fn beside_the_api(path: &str) -> Result<Option<String>, Problem> {
        let segments = segments(path)?;
        let is_apis = segments.first().is_some_and(|first| first == "api");
        Ok((!is_apis).then(|| format!("/{}", segments.join("/"))))
    }

    pub fn find(method: &Method, path: &str) -> Result<Self, Problem> {
        let segments = segments(path)?;
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let ["api", rest @ ..] = words.as_slice() else {
            return match *method {
                Method::GET | Method::HEAD => Ok(Self::Asset(format!("/{}", words.join("/")))),
                _ => Err(Problem::method("GET, HEAD")),
            };
        };
        match (rest, method.as_str()) {
            (["products"], "GET" | "HEAD") => Ok(Self::ListProducts),
            (["products", sku], "GET" | "HEAD") => sku.parse().map(Self::ShowProduct).map_err(bad_id),
            (["carts"], "POST") => Ok(Self::CreateCart),
            (["carts", cart], "GET" | "HEAD") => Ok(Self::ShowCart(cart_id(cart)?)),
            (["carts", cart], "DELETE") => Ok(Self::EmptyCart(cart_id(cart)?)),
            (["carts", cart], "PATCH") => Ok(Self::ChangeCart(cart_id(cart)?)),
            (["carts", cart, "lines"], "POST") => Ok(Self::AddLine(cart_id(cart)?)),
            (["carts", cart, "lines", line], "PATCH") => Ok(Self::SetLine(cart_id(cart)?, line_key(line)?)),
            (["carts", cart, "lines", line], "DELETE") => {
                Ok(Self::RemoveLine(cart_id(cart)?, line_key(line)?))
            }
            (["carts", cart, "coupons", code], "PUT") => Ok(Self::PutCoupon(cart_id(cart)?, coupon(code)?)),
            (["carts", cart, "coupons", code], "DELETE") => {
                Ok(Self::RemoveCoupon(cart_id(cart)?, coupon(code)?))
            }
            (["carts", cart, "quote"], "GET" | "HEAD") => Ok(Self::ShowQuote(cart_id(cart)?)),
            (["carts", cart, "reservation"], "GET" | "HEAD") => Ok(Self::ShowReservation(cart_id(cart)?)),
            (["carts", cart, "reservation"], "POST") => Ok(Self::Reserve(cart_id(cart)?)),
            (["carts", cart, "reservation"], "DELETE") => Ok(Self::GiveUpReservation(cart_id(cart)?)),
            (["checkouts"], "POST") => Ok(Self::Checkout),
            (["orders", order], "GET" | "HEAD") => order.parse().map(Self::ShowOrder).map_err(bad_id),
            (["products"] | ["products", _] | ["carts", _, "quote"] | ["orders", _], _) => {
                Err(Problem::method("GET, HEAD"))
            }
            (["carts"] | ["carts", _, "lines"] | ["checkouts"], _) => Err(Problem::method("POST")),
            (["carts", _, "reservation"], _) => Err(Problem::method("GET, HEAD, POST, DELETE")),
            (["carts", _], _) => Err(Problem::method("GET, HEAD, PATCH, DELETE")),
            (["carts", _, "lines", _], _) => Err(Problem::method("PATCH, DELETE")),
            (["carts", _, "coupons", _], _) => Err(Problem::method("PUT, DELETE")),
            _ => Err(Problem::new(Refusal::NoRoute, "the API has no such path")),
        }
    }
}

/// Words of the API that name no cart, no order and no coupon.
const WORDS: [&str; 9] =
    ["api", "products", "carts", "lines", "coupons", "quote", "reservation", "checkouts", "orders"];

/// A path as logs and traces may have it. In the API's, what names a cart, an order or a coupon is `-`, for to know a cart's
/// number is to own the cart; so is a path that cannot be read.
pub(crate) fn shown(path: &str) -> Cow<'_, str> {
    let Ok(segments) = segments(path) else { return Cow::Borrowed("-") };
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    if !matches!(words.as_slice(), ["api", ..]) || matches!(words.as_slice(), ["api", "products", ..]) {
        return Cow::Borrowed(path);
    }
    let shown = words.iter().map(|word| if WORDS.contains(word) { word } else { "-" });
    Cow::Owned(shown.fold(String::new(), |path, word| path + "/" + word))
}

fn bad_id(error: impl std::fmt::Display) -> Problem {
    Problem::new(Refusal::BadId, error.to_string())
}

fn cart_id(text: &str) -> Result<CartId, Problem> {
    text.parse().map_err(bad_id)
}

fn line_key(text: &str) -> Result<LineKey, Problem> {
    text.parse().map_err(bad_id)
}

fn coupon(text: &str) -> Result<Coupon, Problem> {
    // Shoppers type codes; nobody means another coupon by writing it small.
    text.to_ascii_uppercase().parse().map_err(|e| Problem::new(Refusal::BadCoupon, format!("{e}")))
}

/// The decoded segments of a path. The last one is empty for a path that ends in a slash.
fn segments(path: &str) -> Result<Vec<String>, Problem> {
    let refuse = |why: &str| Problem::new(Refusal::BadPath, why);
    let Some(relative) = path.strip_prefix('/') else { return Err(refuse("it does not begin with a slash")) };
    relative.split('/').map(|raw| segment(raw).map_err(refuse)).collect()
}

fn segment(raw: &str) -> Result<String, &'static str> {
    let bytes = raw.as_bytes();
    let mut at = 0;
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == b'%')) {
        let digits = bytes.get(at + offset + 1..at + offset + 3);
        if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
            return Err("a percent sign is not followed by two hexadecimal digits");
        }
        at += offset + 3;
    }
    let text = percent_decode_str(raw).decode_utf8().map_err(|_| "it is not UTF-8")?;
    if text.chars().any(|c| c.is_control() || c == '\\' || c == '/') {
        return Err("a segment holds a control character, a backslash or an encoded slash");
    }
    // To some servers what follows a semicolon is no part of the name (RFC 3986 section 3.3).
    if matches!(text.split(';').next(), Some("." | "..")) {
        return Err("a segment is a dot or two");
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CART: &str = "00112233445566778899aabbccddeeff";

    fn find(method: &str, path: &str) -> Result<Route, &'static str> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        Route::find(&method, path).map_err(|p| p.refusal.code())
    }

    #[test]
    fn every_path_of_the_api() {
        for (method, path, name) in [
            ("GET", "/api/products", "list_products"),
            ("GET", "/api/products/85123A", "show_product"),
            ("POST", "/api/carts", "create_cart"),
            ("GET", "/api/carts/ID", "show_cart"),
            ("DELETE", "/api/carts/ID", "empty_cart"),
            ("PATCH", "/api/carts/ID", "change_cart"),
            ("POST", "/api/carts/ID/lines", "add_line"),
            ("PATCH", "/api/carts/ID/lines/85123A", "set_line"),
            ("DELETE", "/api/carts/ID/lines/GIFT~cart-rules", "remove_line"),
            ("PUT", "/api/carts/ID/coupons/spring-10", "put_coupon"),
            ("DELETE", "/api/carts/ID/coupons/SPRING-10", "remove_coupon"),
            ("GET", "/api/carts/ID/quote", "quote"),
            ("GET", "/api/carts/ID/reservation", "show_reservation"),
            ("POST", "/api/carts/ID/reservation", "reserve"),
            ("DELETE", "/api/carts/ID/reservation", "give_up_reservation"),
            ("POST", "/api/checkouts", "checkout"),
            ("GET", "/api/orders/ID", "show_order"),
            ("GET", "/", "asset"),
            ("HEAD", "/img/mug.webp", "asset"),
            ("GET", "/apiary", "asset"),
        ] {
            let path = path.replace("ID", CART);
            assert_eq!(find(method, &path).map(|r| r.name()), Ok(name), "{method} {path}");
        }
    }

    #[test]
    fn what_is_the_apis_is_nobody_elses_by_any_method() {
        for path in ["/api", "/api/", "/api/carts", "/%61pi/nothing", "/api/carts/42"] {
            assert_eq!(Route::beside_the_api(path).map_err(|p| p.refusal), Ok(None), "{path}");
        }
        for (path, is) in [("/", "/"), ("/apiary", "/apiary"), ("/a%20b/", "/a b/"), ("//api", "//api")] {
            assert_eq!(Route::beside_the_api(path).map_err(|p| p.refusal), Ok(Some(is.to_owned())), "{path}");
        }
        assert!(Route::beside_the_api("/api/../x").is_err());
    }

    #[test]
    fn no_log_has_what_a_shopper_owns() {
        for (path, is) in [
            ("/api/carts/ID/lines/85123A", "/api/carts/-/lines/-"),
            ("/%61pi/%63arts/ID/quote", "/api/carts/-/quote"),
            ("/api/orders/ID", "/api/orders/-"),
            ("/api/ID", "/api/-"),
            ("/api/carts/ID/../x", "-"),
            ("/api/carts/ID%", "-"),
            ("/api/products/85123A", "/api/products/85123A"),
            ("/blog/%C3%A9/", "/blog/%C3%A9/"),
            ("/apiary/ID", "/apiary/ID"),
        ] {
            assert_eq!(shown(path), is, "{path}");
        }
    }

    #[test]
    fn segments_are_decoded_once() {
        assert_eq!(find("GET", "/a%20b/%C3%A9"), Ok(Route::Asset("/a b/é".into())));
        assert_eq!(find("GET", "/a%2525"), Ok(Route::Asset("/a%25".into())));
        assert_eq!(find("GET", "/docs/"), Ok(Route::Asset("/docs/".into())));
        let sku = |text: &str| text.parse::<Sku>().expect("a sku");
        assert_eq!(find("GET", "/api/products/gift%20001"), Ok(Route::ShowProduct(sku("gift 001"))));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for path in [
            "/a/../b",
            "/a/%2e%2e/b",
            "/./a",
            "/a/..;/b",
            "/a/.%3bx=1/b",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0d%0a",
            "/%zz",
            "/%",
            "/%2",
            "/%ff",
            "*",
        ] {
            assert_eq!(find("GET", path), Err("bad_path"), "{path}");
        }
    }

    #[test]
    fn wrong_names_and_methods_are_told_apart() {
        assert_eq!(find("GET", "/api/carts/42"), Err("bad_id"));
        assert_eq!(find("GET", "/api/products/a~b"), Err("bad_id"));
        assert_eq!(find("PUT", &format!("/api/carts/{CART}/coupons/%20")), Err("bad_coupon"));
        assert_eq!(find("GET", "/api/nothing"), Err("no_such_route"));
        assert_eq!(find("GET", "/api"), Err("no_such_route"));
        assert_eq!(find("PUT", "/api/products"), Err("method_not_allowed"));
        assert_eq!(find("TRACE", "/"), Err("method_not_allowed"));
        assert_eq!(find("GET", &format!("/api/carts/{CART}/lines")), Err("method_not_allowed"));
    }
}
