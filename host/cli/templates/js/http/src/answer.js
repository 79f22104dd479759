/** @param {Request} request */
export async function answer(request) {
  if (request.method !== "GET") {
    return new Response("only GET is answered here\n", { status: 405, headers: { allow: "GET" } });
  }
  const body = JSON.stringify({ plugin: "{{name}}", path: new URL(request.url).pathname });
  return new Response(body, { headers: { "content-type": "application/json" } });
}
