async function answer(request) {
  const url = new URL(request.url);
  if (url.pathname === "/stream") {
    let left = 16;
    return new Response(new ReadableStream({
      pull(controller) {
        if (left-- === 0) { controller.close(); return; }
        controller.enqueue(new Uint8Array(65536).fill(120));
      },
    }));
  }
  if (url.pathname === "/echo") return new Response(request.body);
  if (url.pathname === "/fetch") {
    try {
      const got = await fetch(url.searchParams.get("url"));
      return new Response("fetched " + got.status + " " + (await got.text()).slice(0, 100));
    } catch (error) {
      return new Response("refused: " + error, { status: 502 });
    }
  }
  return new Response("Hello from JavaScript\n");
}
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
