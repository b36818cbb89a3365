// What the page asks of the server.

// What went wrong, in the server's words.
export class Refused extends Error {}

// The stream of this tab, kept over a reload where the browser allows it.
export const kept = {
  get: () => { try { return sessionStorage.getItem("stream"); } catch { return null; } },
  set: (stream) => { try { sessionStorage.setItem("stream", stream ?? ""); } catch { /* then a reload begins anew */ } },
};

export async function call(name, ...data) {
  const response = await fetch(`gradio_api/run/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data }),
  });
  const body = await response.json();
  if (!response.ok) throw new Refused(body.error || "Something went wrong here, not with you. Please start again.");
  return body.data[0];
}

// Upload a file; its name on the server.
export function send(file, progress) {
  const request = new XMLHttpRequest();
  const form = new FormData();
  form.append("files", file);
  return new Promise((done, failed) => {
    request.upload.addEventListener("progress", ({ loaded, total }) => progress(Math.round((100 * loaded) / total)));
    request.addEventListener("load", () => {
      if (request.status === 200) done(JSON.parse(request.responseText)[0]);
      else failed(new Refused(`${file.name} was not taken: it is too large.`));
    });
    request.addEventListener("error", () => failed(new Error("The upload broke off.")));
    request.open("POST", "gradio_api/upload");
    request.send(form);
  });
}
