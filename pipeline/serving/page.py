"""The page of the service: an image is dropped on it, and its classes are drawn over it. It loads nothing from elsewhere."""

POLICY = "default-src 'none'; img-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
"""Content-Security-Policy of the page."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>CCNet</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1200px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.3em; margin: 0 } p { margin: .3em 0 }
label.drop { display: block; margin: 1em 0; padding: 2.5em 1em; border: 2px dashed #9fb3c8; border-radius: 6px;
  text-align: center; cursor: pointer }
label.drop.over { background: #e6f0fa } #error { color: #b3261e; font-weight: 600 }
#result { display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start }
canvas { max-width: 100%; flex: 1 1 480px; min-width: 0 }
td { padding: 0 .6em 0 0; font-variant-numeric: tabular-nums } i { display: inline-block; width: 1em; height: 1em }
[hidden] { display: none !important }
</style></head><body>
<h1>CCNet</h1><p id="model"></p>
<p id="access" hidden><label>Token of this service <input id="token" type="password" autocomplete="off"></label></p>
<label class="drop" id="drop">Drop an image here, or click to choose one<input id="file" type="file" accept="image/*,.tif,.tiff"
  hidden></label>
<p id="error" role="alert"></p>
<div id="result" hidden><canvas id="picture"></canvas><div>
<p><label>Opacity <input id="opacity" type="range" min="0" max="100" value="50"></label></p>
<p><a id="save" download="mask.png">Save the mask</a> <span id="took"></span></p><p id="under">&nbsp;</p>
<table id="legend"></table></div></div>
<script>
const at = id => document.getElementById(id);
let model = null, image = null, ids = null, width = 0, height = 0;

async function ask(path, options = {}) {
  const token = at("token").value;
  const answer = await fetch(path, {...options, headers: token ? {Authorization: "Bearer " + token} : {}});
  if (answer.status === 401) at("access").hidden = false;
  if (answer.ok) return answer;
  const text = await answer.text();
  let reason = text;
  try { reason = JSON.parse(text).error || text } catch {}
  throw new Error(reason || "the service answered " + answer.status);
}

async function about() {
  model = await (await ask("model")).json();
  const score = model.score;
  at("model").textContent = `${model.address}: mIoU ${score.miou.toFixed(4)} on ${score.num_images} images of ${score.split}`;
}

async function predict(file) {
  at("error").textContent = "";
  at("drop").firstChild.textContent = `${file.name} ...`;
  try {
    await about();
    const started = performance.now(), answer = await ask("predict", {method: "POST", body: file}), mask = await answer.blob();
    at("took").textContent = `${Math.round(performance.now() - started)} ms`;
    const pixels = await createImageBitmap(mask, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
    image = await createImageBitmap(file).catch(() => null);  // a format that the browser does not show, such as TIFF
    [width, height] = [pixels.width, pixels.height];
    const sheet = new OffscreenCanvas(width, height).getContext("2d");
    sheet.drawImage(pixels, 0, 0);
    const rgba = sheet.getImageData(0, 0, width, height).data;
    ids = new Uint8Array(width * height);
    for (let i = 0; i < ids.length; i++) ids[i] = rgba[4 * i];
    if (at("save").href) URL.revokeObjectURL(at("save").href);
    at("save").href = URL.createObjectURL(mask);
    legend();
    draw();
    at("result").hidden = false;
  } catch (error) {
    at("result").hidden = true;
    at("error").textContent = error.message;
  }
  at("drop").firstChild.textContent = `${file.name}: drop another image here, or click to choose one`;
}

function draw() {
  const canvas = at("picture"), context = canvas.getContext("2d"), colours = new OffscreenCanvas(width, height).getContext("2d");
  [canvas.width, canvas.height] = [width, height];
  const layer = context.createImageData(width, height), alpha = image ? Math.round(2.55 * at("opacity").value) : 255;
  for (let i = 0; i < ids.length; i++) {
    layer.data.set(model.colors[ids[i]], 4 * i);
    layer.data[4 * i + 3] = alpha;
  }
  colours.putImageData(layer, 0, 0);
  if (image) context.drawImage(image, 0, 0, width, height);
  context.drawImage(colours.canvas, 0, 0);
}

function legend() {
  const counts = model.classes.map(() => 0);
  for (const id of ids) counts[id]++;
  const rows = counts.map((count, id) => [count / ids.length, id]).filter(row => row[0]).sort((a, b) => b[0] - a[0]);
  at("legend").replaceChildren(...rows.map(([share, id]) => {
    const row = document.createElement("tr"), square = document.createElement("i");
    square.style.background = `rgb(${model.colors[id]})`;
    for (const content of [square, model.classes[id], (100 * share).toFixed(1) + " %"]) row.insertCell().append(content);
    return row;
  }));
}

at("file").onchange = event => { if (event.target.files[0]) predict(event.target.files[0]); event.target.value = "" };
at("opacity").oninput = draw;
at("token").onchange = () => about().then(() => at("error").textContent = "", error => at("error").textContent = error.message);
at("picture").onmousemove = event => {
  const box = event.target.getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * width);
  const y = Math.floor((event.clientY - box.top) / box.height * height);
  at("under").textContent = `${x}, ${y}: ${model.classes[ids[y * width + x]] || ""}`;
};
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, event => {
  event.preventDefault();
  at("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop" && event.dataTransfer.files[0]) predict(event.dataTransfer.files[0]);
});
about().catch(error => { at("error").textContent = error.message });
</script></body></html>
"""
