// The tour of `souk serve` (`../README.md`), in JavaScript with fetch events: wasi:http 0.2. The fetch API has no trailers.

const CHUNK = 65536;

/**
 * A body of so many chunks, after which it ends or hangs. (StarlingMonkey ends a body whose stream has an error as if it
 * were whole, so an error would not do: no host can tell.)
 */
function chunks(left, hangs) {
  return new ReadableStream({
    pull(controller) {
      if (left-- > 0) controller.enqueue(new Uint8Array(CHUNK).fill(120));
      else if (hangs) for (;;);
      else controller.close();
    },
  });
}

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/stream":
      return new Response(chunks(16, false));
    case "/partial":
      return new Response(chunks(1, true));
    case "/echo":
      return new Response(request.body);
    case "/fetch":
      try {
        const got = await fetch(url.searchParams.get("url"));
        return new Response(`fetched ${got.status} ${await got.text()}`);
      } catch (error) {
        return new Response(`refused: ${error}`, { status: 502 });
      }
    default:
      return new Response("Hello from JavaScript\n");
  }
}

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
