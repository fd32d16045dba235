// The page: draws what /events says. Everything is put in as text, never as markup: names, reasons
// and logs come from tasks and from the master. Any part of a state may be null: no news.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const MOST_LOG_CHARACTERS = 200000;  // of each task on the page
const STDERR = 2, WORKER = 3;
const GIB = 2 ** 30, MIB = 2 ** 20;
const TONES = {
  ready: "good", running: "good", RUNNING: "good", succeeded: "good", collecting: "good",
  degraded: "bad", failed: "bad", out_of_memory: "bad", out_of_disk: "bad", timed_out: "bad",
  FATAL: "bad", EXITED: "bad", UNKNOWN: "bad", BACKOFF: "bad",
  draining: "warn", paused: "warn", preparing: "warn", cancelled: "warn", STARTING: "warn", STOPPED: "warn",
};
const byId = (id) => document.getElementById(id);
const logs = new Map();  // a task's directory -> its <pre>
let clockOffset = 0;  // the worker's wall clock less ours, seconds
let last = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const now = () => Date.now() / 1000 + clockOffset;

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

const since = (unix) => unix ? duration(now() - unix) : "–";
const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const words = (text) => String(text).replaceAll("_", " ");

function bytes(count) {
  if (count >= GIB) return `${(count / GIB).toFixed(count >= 100 * GIB ? 0 : 1)} GiB`;
  if (count >= MIB) return `${(count / MIB).toFixed(1)} MiB`;
  return `${(count / 1024).toFixed(1)} KiB`;
}

function badge(node, text) {
  setText(node, words(text).toUpperCase());
  node.className = `badge ${TONES[text] || ""}`.trim();
}

function facts(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}

function silence(topic, source) {
  const starting = last && last.topics[topic] === "starting";
  return starting ? `${source} is starting` : `no word from ${source}`;
}

// ---------------------------------------------------------------- node, owner, alerts

function showNode(state) {
  const node = state.node;
  setText(byId("node-name"), node && node.node_name || "HiveMind Worker");
  setText(byId("node-id"), node ? node.node_id || "not registered yet" : silence("link.state", "master_link"));
  badge(byId("node-state"), node ? node.node_state : "no news");
  if (!node) return facts(byId("node"), [["Master link", "no news"]]);
  const engine = state.engine, vpn = state.vpn;
  facts(byId("node"), [
    ["State", node.node_state + (node.node_state_reason ? `: ${node.node_state_reason}` : "")],
    ["Master", node.master_url || "none: set MASTER_NODE_URL"],
    ["Link", node.phase + (node.detail ? `: ${node.detail}` : "")],
    ["Authority", node.authority_digest || "none: plain text on this machine"],
    ["Certificate", node.certificate_until_unix_s ? `good for ${duration(node.certificate_until_unix_s - now())}` : "none"],
    ["Last heartbeat", node.heartbeat_acked_unix_s ? `${since(node.heartbeat_acked_unix_s)} ago` : "none yet"],
    ["Trust level", String(node.trust_level)],
    ["Rewards", `${node.reward_total.toLocaleString("en")} in all, ${node.reward_last} in the last report`],
    ["To deliver", `${counted(node.undelivered_tasks, "task")}, ${counted(node.unacknowledged_reports, "report")}`],
    ["Docker", !engine ? "no news" : engine.available ? engine.version || "there" : `away: ${engine.detail}`],
    ["VPN", !vpn ? "no news" : words(vpn.phase) + (vpn.detail ? `: ${vpn.detail}` : "")],
  ]);
}

function showOwner(owner) {
  for (const button of byId("owner-buttons").children) {
    const chosen = owner.wish === button.dataset.wish;
    button.disabled = chosen;
    if (button.dataset.wish === "ready") button.hidden = chosen;  // nothing to resume
    else button.setAttribute("aria-pressed", String(chosen));
  }
}

function showAlerts(alerts) {
  const list = byId("alerts");
  list.hidden = alerts.length === 0;
  list.replaceChildren(...alerts.map((alert) => {
    const item = element("li", "", alert.text);
    if (alert.raised_unix_s) item.append(element("span", "quiet", `for ${since(alert.raised_unix_s)}`));
    return item;
  }));
}

function showCleared(cleared) {
  const list = byId("cleared");
  list.hidden = cleared.length === 0;
  list.replaceChildren(...cleared.map((alert) => element("li", "",
    `${alert.text}: ended ${since(alert.cleared_unix_s)} ago, after ${duration(alert.cleared_unix_s - alert.raised_unix_s)}`)));
}

// ---------------------------------------------------------------- machine

function drawn(svg, shape, kind, attributes) {
  const made = document.createElementNS(SVG, shape);
  made.setAttribute("class", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  svg.append(made);
}

function picture() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 120 40");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

function curve(values, most, part) {  // part: what the tasks have of it
  const svg = picture();
  if (values.length < 2) return svg;
  const x = (i) => 120 - (values.length - 1 - i) * 120 / 119;
  const y = (value) => 39 - 38 * Math.min(1, value / most);
  const points = (list) => list.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const below = (list) => `${x(0).toFixed(1)},40 ${points(list)} 120,40`;
  drawn(svg, "polygon", "area", {points: below(values)});
  if (part) drawn(svg, "polygon", "part", {points: below(part)});
  drawn(svg, "polyline", "curve", {points: points(values)});
  return svg;
}

function bars(values) {  // of 100
  const svg = picture(), step = 120 / values.length;
  values.forEach((value, i) => drawn(svg, "rect", "core", {
    x: (i * step).toFixed(2), width: (step * 0.8).toFixed(2), y: (40 - 0.4 * value).toFixed(1), height: (0.4 * value).toFixed(1),
  }));
  return svg;
}

function chart(label, value, picture) {
  const made = element("div", "chart");
  const line = element("div", "label");
  line.append(element("span", "", label), element("strong", "", value));
  made.append(line, picture);
  return made;
}

function gauge(part) {
  const made = document.createElement("progress");
  made.max = 1;
  made.value = Math.min(1, Math.max(0, part));
  return made;
}

function showMachine(state) {
  const host = state.host, samples = state.samples;
  if (!host) {
    byId("use").replaceChildren();
    return setText(byId("host"), silence("host.load", "the monitor"));
  }
  const rate = (list) => list.length ? `${bytes(list[list.length - 1])}/s` : "–";
  const most = (list) => Math.max(1024, ...list);
  const charts = [
    shared("CPU", `${host.cpu_pct.toFixed(0)} %`, curve(samples.cpu_pct, 100, samples.tasks_cpu_pct),
      host.tasks_cpu_pct === null ? "" : `tasks ${host.tasks_cpu_pct.toFixed(0)} %, owner ${Math.max(0, host.cpu_pct - host.tasks_cpu_pct).toFixed(0)} %`),
    shared("Memory", `${host.memory_pct.toFixed(0)} %`, curve(samples.memory_pct, 100, samples.tasks_memory_pct),
      host.tasks_memory_bytes === null ? "" : `tasks ${bytes(host.tasks_memory_bytes)}, owner ${bytes(Math.max(0, host.memory_used_bytes - host.tasks_memory_bytes))}`),
    chart("Received", rate(samples.received_bytes_per_s), curve(samples.received_bytes_per_s, most(samples.received_bytes_per_s))),
    chart("Sent", rate(samples.sent_bytes_per_s), curve(samples.sent_bytes_per_s, most(samples.sent_bytes_per_s))),
    chart("Disk", `${bytes(host.disk_free_bytes)} free`, gauge(host.disk_total_bytes ? 1 - host.disk_free_bytes / host.disk_total_bytes : 0)),
  ];
  const images = state.engine;
  if (images && images.disk_total_bytes) charts.push(chart("Disk of images", `${bytes(images.disk_free_bytes)} free`, gauge(1 - images.disk_free_bytes / images.disk_total_bytes)));
  if (host.cores_pct.length) charts.push(chart(`Cores (${host.cores_pct.length})`, `busiest ${Math.max(...host.cores_pct)} %`, bars(host.cores_pct)));
  if (host.swap_pct) charts.push(chart("Swap", `${host.swap_pct.toFixed(0)} %`, gauge(host.swap_pct / 100)));
  for (const gpu of state.gpus) charts.push(gpuChart(gpu));
  byId("use").replaceChildren(...charts);
  const machine = host.inventory;
  setText(byId("host"), [
    machine.operating_system, machine.cpu_count ? `${machine.cpu_count} cores` : "",
    machine.memory_bytes ? bytes(machine.memory_bytes) : "", `load ${host.load_1m.toFixed(2)}`,
    host.temperature_c === null ? "" : `${host.temperature_c.toFixed(0)} °C`, pressure(host),
  ].filter(Boolean).join(" · "));
}

function shared(label, value, drawing, split) {
  const made = chart(label, value, drawing);
  if (split) made.append(element("span", "reason", split));
  return made;
}

function pressure(host) {  // the share of ten seconds in which somebody waited
  if (host.pressure_cpu_pct === null) return "";
  const shown = (value) => `${value.toFixed(0)} %`;
  return `waiting for CPU ${shown(host.pressure_cpu_pct)}, memory ${shown(host.pressure_memory_pct)}, disk ${shown(host.pressure_io_pct)}`;
}

function gpuChart(gpu) {
  const label = `GPU ${gpu.index < 0 ? gpu.uuid : gpu.index} ${gpu.name}`.trim();
  const use = gpu.util_pct === null ? "use unknown" : `${gpu.util_pct.toFixed(0)} %`;
  const made = chart(label, gpu.reachable ? use : "lost", gauge((gpu.util_pct || 0) / 100));
  made.append(element("span", "reason", gpu.reachable ? gpuNotes(gpu).join(" · ") : gpu.reason));
  return made;
}

function gpuNotes(gpu) {  // what an owner should know of it
  return [
    gpu.memory_used_bytes === null ? "" : `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`,
    gpu.temperature_c === null ? "" : `${gpu.temperature_c.toFixed(0)} °C`,
    gpu.power_w === null ? "" : `${gpu.power_w.toFixed(0)} W`,
    gpu.is_split ? "split by MIG: no task gets it" : "",
    gpu.mig_of ? `a part of ${gpu.mig_of}` : "",
    gpu.throttle_reasons && gpu.throttle_reasons.length ? `held back: ${gpu.throttle_reasons.join(", ")}` : "",
    gpu.ecc_uncorrected ? `${gpu.ecc_uncorrected} memory errors` : "",
    gpu.xid === null ? "" : `last error XID ${gpu.xid}`,
  ].filter(Boolean);
}

// ---------------------------------------------------------------- processes

function row(cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function badgeCell(text, reason) {
  const cell = element("td"), mark = element("span");
  badge(mark, text);
  cell.append(mark);
  if (reason) cell.append(element("span", "reason", reason));
  return cell;
}

function showTable(id, rows, empty) {
  const table = byId(id);
  table.hidden = rows.length === 0;
  table.tBodies[0].replaceChildren(...rows);
  setText(byId(`${id}-empty`), rows.length ? "" : empty);
}

function showProcesses(processes) {
  showTable("processes", (processes || []).map((process) => row([
    element("td", "name", process.name),
    badgeCell(process.state, process.detail),
    element("td", "number", String(process.restarts)),
    element("td", "number", since(process.since_unix_s)),
    element("td", "number", process.pid ? String(process.pid) : "–"),
  ])), silence("process.state", "the watchdog"));
}

// ---------------------------------------------------------------- the history, searched

const found = {filtered: false, more: [], next: null, newest: "", asked: 0, waits: 0};  // beyond what /events brings

function taskRow(task) {
  const name = element("td", "name", task.directory);
  name.append(element("span", "reason", [task.image, task.command].filter(Boolean).join(" · ")));
  return row([
    name,
    badgeCell(task.phase, task.error),
    element("td", "number", task.exit_code === null || task.exit_code < 0 ? "–" : String(task.exit_code)),
    element("td", "number", task.started_unix_s ? duration(task.finished_unix_s - task.started_unix_s) : "–"),
    element("td", "number", `${since(task.finished_unix_s)} ago`),
  ]);
}

function drawHistory(tasks, next) {
  showTable("history", tasks.map(taskRow), found.filtered ? "nothing found" : "no task has ended yet");
  byId("history-more").hidden = next === null;
}

function showHistory(history) {
  const tasks = history ? history.tasks : [];
  const newest = tasks.length ? `${tasks[0].directory} ${tasks[0].finished_unix_s}` : "";
  const changed = newest !== found.newest;
  found.newest = newest;
  if (found.filtered || found.more.length) {  // what was asked for stays, and is asked for again when a task has ended
    if (changed && found.filtered && found.more.length <= 50) lookUp();
    else if (found.more.length) drawHistory(found.more, found.next);
    return;
  }
  found.next = history ? history.next : null;
  drawHistory(tasks, found.next);
}

function historyQuery(after) {
  const query = new URLSearchParams();
  const text = byId("history-text").value.trim(), within = byId("history-within").value;
  if (text) query.set("text", text);
  if (byId("history-state").value) query.set("state", byId("history-state").value);
  if (within) query.set("since", String(Math.floor(now() - Number(within))));
  found.filtered = query.toString() !== "";
  if (after) query.set("after", after);
  return `/history?${query}`;
}

async function lookUp(after) {
  const mine = ++found.asked;  // an answer that was overtaken is dropped
  const path = historyQuery(after);
  let answer, said = "";
  try {
    answer = await fetch(path);
    if (!answer.ok) said = await answer.text();
    else answer = await answer.json();
  } catch {
    said = "The worker did not answer.";
  }
  if (mine !== found.asked) return;
  if (said || answer === null) {
    return setText(byId("history-empty"), said || "The history can't be read at the moment.");
  }
  const shown = after ? (found.more.length ? found.more : last.history.tasks) : [];
  found.more = after || found.filtered ? [...shown, ...answer.tasks] : [];
  found.next = answer.next;
  drawHistory(found.more.length ? found.more : answer.tasks, answer.next);
}

byId("history-text").addEventListener("input", () => {
  clearTimeout(found.waits);
  found.waits = setTimeout(lookUp, 250);
});
for (const id of ["history-state", "history-within"]) byId(id).addEventListener("change", () => lookUp());
byId("history-more").addEventListener("click", () => lookUp(found.next));

// ---------------------------------------------------------------- tasks and their output

function showTasks(tasks) {
  const box = byId("tasks"), held = tasks || [];
  setText(byId("tasks-count"), held.length ? `(${held.length})` : "");
  setText(byId("tasks-empty"), tasks === null ? silence("task.state", "the executor") : held.length ? "" : "none at the moment");
  const wanted = new Set(held.map((task) => task.directory));
  for (const card of [...box.children]) {
    if (!wanted.has(card.dataset.task)) {
      logs.delete(card.dataset.task);
      card.remove();
    }
  }
  for (const task of held) showTask(cardOf(box, task.directory), task);
}

function cardOf(box, directory) {
  for (const card of box.children) if (card.dataset.task === directory) return card;
  const card = element("article", "task");
  card.dataset.task = directory;
  const head = element("div", "head"), stop = element("button", "", "Stop");
  stop.type = "button";
  stop.className = "stop";
  stop.addEventListener("click", () => ask(`/tasks/${encodeURIComponent(directory)}/stop`, {}));
  head.append(element("span", "name", directory), element("span", "badge"), element("span", "quiet time"), stop);
  const log = element("pre", "log");
  log.tabIndex = 0;
  log.setAttribute("aria-label", `Output of ${directory}`);
  log.hidden = true;
  card.append(head, element("p", "about"), element("p", "warned"), log);
  logs.set(directory, log);
  box.append(card);
  return card;
}

function showTask(card, task) {
  const phase = task.phases.length ? task.phases[task.phases.length - 1] : null;
  badge(card.querySelector(".badge"), task.phase);
  setText(card.querySelector(".time"), phase ? `for ${since(phase.at_unix_s)}` : "");
  const stop = card.querySelector("button");
  stop.hidden = task.final;
  stop.disabled = task.stopping;
  setText(stop, task.stopping ? "Stopping …" : "Stop");
  const use = task.use;
  setText(card.querySelector(".about"), [
    task.image, task.command.join(" "),
    use ? `CPU ${use.cpu_pct.toFixed(0)} %` : "",
    use ? `memory ${bytes(use.memory_bytes)}${use.memory_limit_bytes ? ` of ${bytes(use.memory_limit_bytes)}` : ""}` : "",
    use && use.disk_bytes ? `disk ${bytes(use.disk_bytes)} of ${bytes(use.disk_limit_bytes)}` : "",
    task.detail,
  ].filter(Boolean).join(" · "));
  setText(card.querySelector(".warned"), task.alerts.map((alert) => alert.text).join(" · "));
}

function addLog(event) {
  const log = logs.get(event.task);
  if (!log) return;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
  if (event.fresh) log.replaceChildren();
  for (const [stream, text] of event.parts) {
    log.append(element("span", stream === STDERR ? "error" : stream === WORKER ? "worker" : "", text));
  }
  let length = log.textContent.length;
  while (length > MOST_LOG_CHARACTERS && log.childNodes.length > 1) {
    length -= log.firstChild.textContent.length;
    log.firstChild.remove();
  }
  log.hidden = false;
  if (atEnd || event.fresh) log.scrollTop = log.scrollHeight;
}

// ---------------------------------------------------------------- live, and the owner's wishes

function notice(id, text) {
  byId(id).hidden = !text;
  setText(byId(id), text);
}

function show(state) {
  last = state;
  clockOffset = state.now_unix_s - Date.now() / 1000;
  showNode(state);
  showOwner(state.owner);
  showAlerts(state.alerts);
  showCleared(state.cleared);
  showMachine(state);
  showTasks(state.tasks);
  showProcesses(state.processes);
  showHistory(state.history);
}

async function ask(path, body) {
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: {"Content-Type": "application/json", "X-HiveMind": "1"},
      body: JSON.stringify(body),
    });
    notice("answer", answer.ok ? "" : await answer.text());
  } catch {
    notice("answer", "The worker did not answer; nothing was changed.");
  }
}

for (const button of byId("owner-buttons").children) {
  button.addEventListener("click", () => ask("/owner", {wish: button.dataset.wish}));
}

function listen() {
  const source = new EventSource("/events");
  source.addEventListener("open", () => notice("connection", ""));
  source.addEventListener("error", () => {
    notice("connection", "The worker's page is away" +
      (last ? `; what stands below was so ${duration(now() - last.now_unix_s)} ago` : "") + ". Trying again …");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);  // refused: it gives up by itself
  });
  source.addEventListener("state", (event) => show(JSON.parse(event.data)));
  source.addEventListener("log", (event) => addLog(JSON.parse(event.data)));
}

listen();
