// Calls to the server.

// An error with a message for the visitor.
export class Refused extends Error {}

// The stream of this tab, which survives a reload if the browser allows it.
export const kept = {
  get: () => { try { return sessionStorage.getItem("stream"); } catch { return null; } },
  set: (stream) => { try { sessionStorage.setItem("stream", stream ?? ""); } catch { /* a reload then starts over */ } },
};

export async function call(name, ...data) {
  const response = await fetch(`gradio_api/run/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data }),
  });
  const body = await response.json();
  if (!response.ok) throw new Refused(body.error || "Something went wrong on the server. Please start again.");
  return body.data[0];
}

// Upload a file, and return its path on the server.
export function send(file, progress) {
  const request = new XMLHttpRequest();
  const form = new FormData();
  form.append("files", file);
  return new Promise((done, failed) => {
    request.upload.addEventListener("progress", ({ loaded, total }) => progress(Math.round((100 * loaded) / total)));
    request.addEventListener("load", () => {
      if (request.status === 200) done(JSON.parse(request.responseText)[0]);
      else failed(new Refused(`${file.name} was not uploaded: it is too large.`));
    });
    request.addEventListener("error", () => failed(new Error("The upload was interrupted.")));
    request.open("POST", "gradio_api/upload");
    request.send(form);
  });
}
