// The page of dnstrail. What others chose (names, pods, answers) goes into text nodes alone, never into markup.
"use strict";

const $ = id => document.getElementById(id);
const views = ["now", "who", "rows"];
const form = $("filters");
const words = [...form.elements].map(e => e.name).filter(Boolean);
const sorting = {clients: "lookups", names: "lookups", upstreams: "lookups", instances: "lookups"};
let last = null, events = null, paused = false, failures = 0;

// make gives an element with attributes and children; a string is text.
function make(tag, attributes, ...children) {
	const e = document.createElement(tag);
	for (const [k, v] of Object.entries(attributes || {})) {
		if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
		else if (v === true) e.setAttribute(k, "");
		else if (v !== false && v != null) e.setAttribute(k, v);
	}
	e.append(...children.filter(c => c != null));
	return e;
}

// took writes nanoseconds with three digits, as everywhere in dnstrail.
function took(ns) {
	for (const [unit, name] of [[1e9, " s"], [1e6, " ms"], [1e3, " µs"]]) {
		const v = ns / unit;
		if (v >= 0.9995) return (v >= 99.95 ? v.toFixed(0) : v >= 9.995 ? v.toFixed(1) : v.toFixed(2)) + name;
	}
	return Math.round(ns) + " ns";
}
const rate = v => v >= 99.95 ? v.toFixed(0) : v >= 0.995 || !v ? v.toFixed(1) : v.toFixed(2);
const percent = (part, whole) => part && whole ? (100 * part / whole).toFixed(1) + " %" : "-";
const number = n => n ? String(n) : "-";

// spark draws counts as bars, with words for those who do not see them.
function spark(counts) {
	const ns = "http://www.w3.org/2000/svg", most = Math.max(1, ...counts), svg = document.createElementNS(ns, "svg");
	for (const [k, v] of Object.entries({class: "spark", viewBox: "0 0 " + counts.length * 4 + " 16", preserveAspectRatio: "none", role: "img",
		"aria-label": "over the time: " + counts.join(", ")})) svg.setAttribute(k, v);
	counts.forEach((n, i) => {
		const r = document.createElementNS(ns, "rect"), h = n ? Math.max(1, 16 * n / most) : 0;
		for (const [k, v] of Object.entries({x: i * 4, y: 16 - h, width: 3, height: h})) r.setAttribute(k, v);
		svg.append(r);
	});
	return svg;
}

// literal makes a pattern that takes this value alone.
const literal = v => v.replace(/[\\*?[]/g, "\\$&");

// asked gives the filters as a query.
function asked() {
	const q = new URLSearchParams();
	for (const w of words) {
		const v = form.elements[w].value.trim();
		if (v) q.set(w, v);
	}
	return q;
}

// exact are the filters that are no patterns, which observe does not have.
const exact = ["upstream", "instance", "server-node"];

// choose sets filters, or takes them back where all are set so, and asks again.
function choose(...filters) {
	const set = filters.map(([word, value]) => [form.elements[word], exact.includes(word) ? value : literal(value)]);
	const back = set.every(([e, v]) => e.value === v);
	for (const [e, v] of set) e.value = back ? "" : v;
	apply();
}
const pick = (word, value, text) => make("button", {class: "plain", type: "button", "data-pick": word, onclick: () => choose([word, value])}, text ?? value);

function apply() {
	const q = asked();
	history.replaceState(null, "", "#" + current() + (String(q) ? "?" + q : ""));
	follow();
}

const current = () => views.find(v => !$(v).hidden) || "now";

// route shows the view, and sets the filters, that the address names.
function route() {
	const [view, query] = location.hash.slice(1).split("?");
	const shown = views.includes(view) ? view : "now";
	for (const v of views) {
		$(v).hidden = v !== shown;
		if (v === shown) $("tab-" + v).setAttribute("aria-current", "page");
		else $("tab-" + v).removeAttribute("aria-current");
	}
	if (query !== undefined) {
		const q = new URLSearchParams(query);
		for (const w of words) if (q.has(w) || w !== "since") form.elements[w].value = q.get(w) || "";
	}
	for (const v of views) $("tab-" + v).href = "#" + v + (String(asked()) ? "?" + asked() : "");
}

function say(text, bad) {
	$("state").textContent = text;
	$("state").className = bad ? "bad" : "";
}

// follow asks for views as they come.
function follow() {
	route();
	if (events) events.close();
	$("said").textContent = "";
	const q = asked();
	events = new EventSource("/page/live?" + q);
	events.addEventListener("view", e => {
		failures = 0;
		if (!paused) show(JSON.parse(e.data));
	});
	events.onerror = async () => {
		if (events.readyState !== EventSource.CLOSED) return say("the store does not answer: trying again", true);
		// It will not be tried again: what is wrong is said by asking once.
		const answer = await fetch("/page/view?" + q).catch(() => null);
		if (answer && answer.ok) show(await answer.json());
		else if (answer && answer.status === 400) return void ($("said").textContent = await answer.text());
		say(answer ? "more seldom: too many look on" : "the store does not answer", true);
		setTimeout(follow, Math.min(30000, 2000 * 2 ** failures++));
	};
}

function show(v) {
	last = v;
	say((paused ? "paused, " : "") + "the last " + Math.round(v.seconds) + " s" + (v.whole ? "" : ": more were asked than are kept"), false);
	totals(v);
	stages(v);
	matrix(v);
	for (const [id, word] of [["clients", "client"], ["names", "name"], ["upstreams", "upstream"], ["instances", "instance"]]) lines(id, word, v[id] || [], v);
	lookups(v);
	document.body.dataset.ready = "true";
}

function totals(v) {
	$("totals").replaceChildren(...[
		["lookups", v.lookups], ["per second", rate(v.rate)], ["failed", number(v.failed), v.failed], ["lost", number(v.lost), v.lost],
		["p50", v.lookups ? took(v.p50Nanos) : "-"], ["p99", v.lookups ? took(v.p99Nanos) : "-"],
	].map(([k, t, bad]) => make("div", {}, make("dt", {}, k), make("dd", {"data-total": k, class: bad ? "bad" : ""}, String(t)))),
	make("div", {}, make("dt", {}, "over the time"), make("dd", {}, spark(v.spark))));
}

function stages(v) {
	const most = Math.max(1, ...v.stages.map(s => s.p99Nanos));
	const chosen = form.elements.where.value;
	keep($("map"), v.stages.map(s => {
		const meter = make("i", {});
		meter.style.width = 100 * s.p99Nanos / most + "%";
		return make("li", {"data-stage": s.stage, class: (s.lost ? "lossy " : "") + (chosen === s.stage ? "chosen" : "")},
			pick("where", s.stage),
			make("p", {}, make("span", {"data-field": "rate"}, rate(s.rate)), "/s"),
			s.lookups ? make("p", {}, "p50 ", make("span", {"data-field": "p50"}, took(s.p50Nanos)), make("br"), "p99 ", make("span", {"data-field": "p99"}, took(s.p99Nanos))) :
				make("p", {class: "faint"}, "no time seen"),
			make("div", {class: "meter", role: "img", "aria-label": "p99 " + took(s.p99Nanos)}, meter),
			s.lost ? make("p", {class: "bad"}, make("span", {"data-field": "lost"}, String(s.lost)), " lost") : make("p", {class: "faint"}, "none lost"),
			make("ul", {}, ...s.causes.map(c => make("li", {}, pick("cause", c.cause, c.cause + " " + c.lost)))));
	}));
	if (!$("stages").children.length) $("stages").replaceChildren(...["answered", ...v.stages.map(s => s.stage)].map(s => make("option", {value: s})));
}

// keep puts new children in the place of the old ones, with the focus where it was.
function keep(parent, children) {
	const at = [...parent.querySelectorAll("button")].indexOf(document.activeElement);
	parent.replaceChildren(...children);
	if (at >= 0) parent.querySelectorAll("button")[at]?.focus();
}

function matrix(v) {
	const from = [...new Set(v.nodes.map(n => n.from))].sort(), to = [...new Set(v.nodes.map(n => n.to))].sort();
	const table = $("matrix"), caption = table.querySelector("caption");
	keep(table, [caption,
		make("tr", {}, make("th", {scope: "col"}, "from, to"), ...to.map(n => make("th", {scope: "col"}, n || "not known"))),
		...from.map(f => make("tr", {}, make("td", {}, pick("client", f)), ...to.map(t => {
			const p = v.nodes.find(n => n.from === f && n.to === t);
			if (!p) return make("td", {class: "faint"}, "-");
			const text = p.failed + " of " + p.lookups;
			return make("td", {"data-pair": f + " " + t, class: p.failed ? "lossy" : ""}, t === "" ? text : make("button",
				{class: "plain", type: "button", "aria-label": text + " failed from " + f + " to " + t, onclick: () => choose(["client", f], ["server-node", t])}, text));
		})))]);
}

const columns = [
	["key", ""], ["rate", "per s", l => rate(l.rate)], ["lookups", "lookups", l => String(l.lookups)], ["failed", "failed", l => number(l.failed)],
	["share", "of all", l => percent(l.failed, l.lookups)], ["lost", "lost", l => number(l.lost)], ["nxdomain", "nxdomain", l => number(l.nxdomain)],
	["again", "again", l => number(l.again)], ["searches", "search path", l => number(l.searches)],
	["p50Nanos", "p50", l => took(l.p50Nanos)], ["p99Nanos", "p99", l => took(l.p99Nanos)], ["waitedNanos", "waited", l => took(l.waitedNanos)],
];

function lines(id, word, list, v) {
	const by = sorting[id], value = l => by === "share" ? l.failed / l.lookups : l[by];
	const sorted = [...list].sort((a, b) => by === "key" ? a.key.localeCompare(b.key) : value(b) - value(a));
	const table = $(id), caption = table.querySelector("caption");
	const head = make("tr", {}, ...columns.map(([k, text]) => make("th", {scope: "col", "aria-sort": k === by ? (k === "key" ? "ascending" : "descending") : null},
		make("button", {class: "plain", type: "button", onclick: () => { sorting[id] = k; lines(id, word, list, v); }}, text || word))), make("th", {scope: "col"}, "over the time"));
	keep(table, [caption, head, ...sorted.map(l => make("tr", {"data-key": l.key},
		...columns.map(([k, , text]) => make("td", {"data-field": k, class: k === "lost" && l.lost || k === "failed" && l.failed ? "bad" : ""}, text ? text(l) : pick(word, l.key))),
		make("td", {}, spark(l.spark || []))))]);
}

function lookups(v) {
	const table = $("lookups"), caption = table.querySelector("caption");
	keep(table, [caption, make("tr", {}, ...["time", "client", "name", "type", "result", "took", "where and why"].map((h, i) => make("th", {scope: "col", class: i === 5 ? "" : "text"}, h))),
		...v.rows.map(r => make("tr", {"data-trace": r.traceID, class: r.result === "LOST" ? "lost" : ""},
			make("td", {}, make("button", {class: "plain", type: "button", "data-walk": r.traceID, onclick: () => walk(r)}, new Date(r.time).toLocaleTimeString([], {hour12: false}))),
			make("td", {class: "text"}, r.client), make("td", {class: "text"}, r.name), make("td", {class: "text"}, r.type),
			make("td", {class: r.result === "NOERROR" || r.result === "NXDOMAIN" ? "text" : "text bad"}, r.result), make("td", {}, took(r.totalNanos)),
			make("td", {class: "text"}, r.where === "answered" ? r.text || "" : r.where + ": " + (r.text || r.cause))))]);
}

// walk opens a lookup's drawing.
function walk(r) {
	const url = "/page/walk/" + r.traceID + "?" + new URLSearchParams({server: r.server});
	$("drawing").src = url;
	$("alone").href = url;
	$("walk").showModal();
}

// command gives the command line that shows the same.
function command() {
	const quote = v => /^[\w.,:/*@!-]+$/.test(v) ? v.replace(/^.*[*!].*$/, "'$&'") : "'" + v.replace(/'/g, "'\\''") + "'";
	let line = "dnstrail observe --store " + location.origin;
	for (const [k, v] of asked()) {
		if (exact.includes(k)) continue; // observe has no such filter
		line += " --" + k + (k === "lost" ? "=" : " ") + quote(v);
	}
	return line;
}

form.addEventListener("submit", e => { e.preventDefault(); apply(); });
form.addEventListener("change", e => { if (e.target.tagName === "SELECT") apply(); });
$("clear").addEventListener("click", () => { form.reset(); apply(); });
$("pause").addEventListener("click", () => {
	paused = !paused;
	$("pause").setAttribute("aria-pressed", String(paused));
	if (last) say((paused ? "paused, " : "") + "the last " + Math.round(last.seconds) + " s", false);
});
$("copy").addEventListener("click", async () => {
	const line = command();
	try {
		await navigator.clipboard.writeText(line);
		$("said").textContent = "copied: " + line;
	} catch {
		$("said").textContent = line; // a page that is not of a secure context may not copy
	}
});
$("more").open = matchMedia("(min-width: 44rem)").matches; // on a telephone the lookups come first
window.addEventListener("hashchange", () => { const before = String(asked()); route(); if (String(asked()) !== before) follow(); });
follow();
