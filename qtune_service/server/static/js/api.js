// Requests to the service. A failed one throws: Problem (the server's own words, RFC 9457) or Unreachable.

import { heard, lost } from "./connection.js";

const UNSAFE = new Set(["POST", "PUT", "PATCH", "DELETE"]);

export class Problem extends Error {
  constructor(body) {
    super(body.detail || body.title);
    this.name = "Problem";
    this.status = body.status;
    this.code = body.code;
    this.hint = body.hint ?? "";
    this.errors = body.errors ?? []; // [{field, message}]
  }
}

export class Unreachable extends Error {
  constructor(reason) {
    super(reason);
    this.name = "Unreachable";
  }
}

let known = null;

// Who is signed in: {name, scope, needs_token, is_signed_in, csrf_token}. Asked for once a page.
export const session = () => {
  known ??= request("GET", "/api/v1/session").catch((error) => {
    known = null;
    throw error;
  });
  return known;
};

export const get = (path, options) => request("GET", path, options);
export const post = (path, body, options) => request("POST", path, { body, ...options });
export const remove = (path, options) => request("DELETE", path, options);

// The path of a query: `query({q: "a", status: ["failed"]})` is "?q=a&status=failed"; empty values are left out.
export const query = (values) => {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of [value].flat()) if (one !== "" && one !== null && one !== undefined) found.append(name, one);
  }
  return found.size ? `?${found}` : "";
};

export const request = async (method, path, { body, headers = {}, signal, stays = false } = {}) => {
  const sent = { Accept: "application/json", ...(await proof(method)), ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: sent, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    lost();
    throw new Unreachable("The server does not answer.");
  }
  return understood(response, stays);
};

// Cookies alone do not prove that this page asks.
export const proof = async (method) => {
  if (!UNSAFE.has(method)) return {};
  const { csrf_token: token } = await session();
  return token ? { "X-CSRF-Token": token } : {};
};

// The body of an answer, or the error that it is. stays: a 401 does not lead to the sign-in page.
export const understood = async (response, stays = false) => {
  if (response.ok) {
    heard();
    if (response.status === 204) return response.headers.get("X-Output-Kept"); // why a deletion left an output
    const isJson = response.headers.get("Content-Type")?.includes("json");
    return isJson ? response.json() : response.text();
  }
  const problem = await problemOf(response);
  if (problem === null) { // a proxy speaks, not the server
    lost(`The server cannot be reached (${response.status}).`);
    throw new Unreachable(`The server cannot be reached (${response.status}).`);
  }
  if (problem.code === "database") lost(problem.message);
  else heard();
  if ([401, 403].includes(problem.status)) known = null; // the caller may have changed, in another tab
  if (problem.status === 401 && !stays) toSignIn();
  throw problem;
};

const problemOf = async (response) => {
  if (response.headers.get("Content-Type")?.includes("application/problem+json")) {
    return new Problem(await response.json());
  }
  if ([502, 503, 504].includes(response.status)) return null;
  return new Problem({ status: response.status, title: `The server answered ${response.status}`, code: "unknown" });
};

export const toSignIn = () => {
  const next = location.pathname + location.search;
  location.assign(`/sign-in${query({ next: next === "/" ? "" : next })}`);
};
