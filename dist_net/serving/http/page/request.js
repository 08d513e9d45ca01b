// The request that the page sends, as code for a terminal and for Python.

import { byId, element } from "./elements.js";
import { classifyPath, hasToken } from "./gateway.js";

/** Shows how to ask a model about this picture without the page. */
export function showRequest(model, picture) {
  const address = new URL(classifyPath(model), location.href).href;
  byId("curl").textContent = asCurl(address, picture);
  byId("python").textContent = asPython(address, picture);
  byId("token-file").hidden = !hasToken();
}

/** Adds to each piece of code a button that copies it, where the browser allows that. */
export function offerCopies() {
  if (!navigator.clipboard) return;  // it is only there for pages of this host, and with TLS
  for (const figure of document.querySelectorAll("#request figure")) {
    const button = element("button", "Copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(figure.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    figure.querySelector("figcaption").append(button);
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function asCurl(address, picture) {
  const token = hasToken() ? '-H "Authorization: Bearer $(cat token)" ' : "";
  return `curl ${token}--data-binary ${quoted(`@${picture.name}`)} \\\n  ${quoted(address)}`;
}

function asPython(address, picture) {
  const token = `headers["Authorization"] = f"Bearer {Path('token').read_text().strip()}"\n`;
  return `import json
from pathlib import Path
from urllib.request import Request, urlopen

address = ${JSON.stringify(address)}
headers = {"Content-Type": ${JSON.stringify(picture.type || "application/octet-stream")}}
${hasToken() ? token : ""}picture = Path(${JSON.stringify(picture.name)}).read_bytes()
request = Request(address, picture, headers)
print(json.load(urlopen(request)))
`;
}
