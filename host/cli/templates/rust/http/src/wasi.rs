//! From a `wasi:http` request to [`answer`](crate::answer), and from its page to a response.

wit_bindgen::generate!({ path: "souk/wit", world: "http-plugin", generate_all });

use exports::wasi::http::incoming_handler::Guest;
use wasi::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Plugin;

impl Guest for Plugin {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let page = crate::answer(matches!(request.method(), Method::Get), &path);
        let headers = Fields::new();
        for (name, value) in &page.headers {
            headers.append(name, value.as_bytes()).expect("the names and values above are valid");
        }
        let response = OutgoingResponse::new(headers);
        response.set_status_code(page.status).expect("the status codes above are valid");
        let body = response.body().expect("a response has one body, and it is asked for once");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("a body has one stream, and it is asked for once");
        // A client that has gone away needs no answer.
        let written = page.body.as_bytes().chunks(4096).try_for_each(|chunk| stream.blocking_write_and_flush(chunk));
        drop(stream);
        if written.is_ok() {
            let _ = OutgoingBody::finish(body, None);
        }
    }
}

export!(Plugin);
