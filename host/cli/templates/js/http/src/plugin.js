// Answers GET with the path it was asked for. A standard fetch handler: nothing here is Souk's own.

/** @param {Request} request */
export async function answer(request) {
  if (request.method !== "GET") {
    return new Response("only GET is answered here\n", { status: 405, headers: { allow: "GET" } });
  }
  const body = JSON.stringify({ plugin: "{{name}}", path: new URL(request.url).pathname });
  return new Response(body, { headers: { "content-type": "application/json" } });
}

// Absent under Node, where the test imports this file.
globalThis.addEventListener?.("fetch", (event) => event.respondWith(answer(event.request)));
