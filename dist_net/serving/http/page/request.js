// The request that the page sends, as code for a terminal and for Python.

import { byId, element } from "./elements.js";
import { classifyPath, hasToken } from "./gateway.js";

/** Shows how to ask a model about this image without the page. */
export function showRequest(model, image) {
  const address = new URL(classifyPath(model), location.href).href;
  byId("curl").textContent = asCurl(address, image);
  byId("python").textContent = asPython(address, image);
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

function asCurl(address, image) {
  const token = hasToken() ? '-H "Authorization: Bearer $(cat token)" ' : "";
  return `curl ${token}--data-binary ${quoted(`@${image.name}`)} \\\n  ${quoted(address)}`;
}

function asPython(address, image) {
  const token = `headers["Authorization"] = f"Bearer {Path('token').read_text().strip()}"\n`;
  return `import json
from pathlib import Path
from urllib.request import Request, urlopen

address = ${JSON.stringify(address)}
headers = {"Content-Type": ${JSON.stringify(image.type || "application/octet-stream")}}
${hasToken() ? token : ""}image = Path(${JSON.stringify(image.name)}).read_bytes()
request = Request(address, image, headers)
print(json.load(urlopen(request)))
`;
}
