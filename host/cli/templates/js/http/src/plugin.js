// Answers GET with the path it was asked for. A standard fetch handler: nothing here is Souk's own.
import { answer } from "./answer.js";

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
