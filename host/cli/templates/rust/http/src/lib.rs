//! Answers GET with the path it was asked for. Standard `wasi:http`: nothing here is Souk's own.

#[cfg(target_arch = "wasm32")]
mod wasi;

/// What is answered, without a word of HTTP's machinery, so that a unit test can ask.
pub struct Page {
    pub status: u16,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: String,
}

pub fn answer(get: bool, path_with_query: &str) -> Page {
    if !get {
        let body = "only GET is answered here\n".to_owned();
        return Page { status: 405, headers: vec![("allow", "GET")], body };
    }
    let path = path_with_query.split('?').next().unwrap_or_default();
    let body = format!(r#"{{"plugin": "{{name}}", "path": {path:?}}}"#);
    Page { status: 200, headers: vec![("content-type", "application/json")], body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn get_is_answered_with_the_path() {
        let page = answer(true, "/hello/you?a=1");
        assert_eq!((page.status, page.body.as_str()), (200, r#"{"plugin": "{{name}}", "path": "/hello/you"}"#));
    }

    #[test]
    fn other_methods_are_not_allowed() {
        assert_eq!(answer(false, "/").status, 405);
    }
}
