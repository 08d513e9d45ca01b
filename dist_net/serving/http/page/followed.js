// Requests of the pages of runs, with the token of this tab.

const TOKEN = "dist_net token";

export const rememberToken = (token) => sessionStorage.setItem(TOKEN, token);

/** The response to a request. Throws an error; its `status` is 401 if a token is needed. */
export async function requested(path) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { headers, cache: "no-store" });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw Object.assign(new Error(error ?? `error ${response.status}`), { status: response.status });
}

/** The server-sent events of a stream, each [id, data]. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        const [, id, data] = event.match(/^id: (.*)\ndata: (.*)$/) ?? [];
        if (data) yield [id, data];
      }
    }
  } finally {
    reader.cancel().catch(() => {});  // it fails if the connection has
  }
}
