// Requests to the REST API. A failed request throws Problem, an error that the server described (RFC 9457), or
// Unreachable.

import { markConnected, markLost } from "./connection.js";

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
  constructor(message) {
    super(message);
    this.name = "Unreachable";
  }
}

let cachedSession = null;

// Return the session: {name, scope, needs_token, is_signed_in, csrf_token}. It is requested once a page.
export const session = () => {
  cachedSession ??= request("GET", "/api/v1/session").catch((error) => {
    cachedSession = null;
    throw error;
  });
  return cachedSession;
};

export const get = (path, options) => request("GET", path, options);
export const post = (path, body, options) => request("POST", path, { body, ...options });
export const remove = (path, options) => request("DELETE", path, options);

export const jobPath = (id, ...rest) => ["/api/v1/jobs", encodeURIComponent(id), ...rest].join("/");

// Return a query string without empty values: `query({q: "a", status: ["failed"]})` is "?q=a&status=failed".
export const query = (values) => {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    const items = [value].flat().filter((item) => item !== "" && item !== null && item !== undefined);
    for (const item of items) params.append(name, item);
  }
  return params.size ? `?${params}` : "";
};

const request = async (method, path, { body, headers = {}, signsIn = true } = {}) => {
  const allHeaders = { Accept: "application/json", ...(await csrfHeader(method)), ...headers };
  if (body !== undefined) allHeaders["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: allHeaders, body: body && JSON.stringify(body) });
  } catch {
    markLost();
    throw new Unreachable("The server does not answer.");
  }
  return readResponse(response, signsIn);
};

// A cookie alone does not prove that a request comes from this page.
export const csrfHeader = async (method) => {
  if (!UNSAFE.has(method)) return {};
  const { csrf_token: token } = await session();
  return token ? { "X-CSRF-Token": token } : {};
};

// Return the body of a response, or throw the error that it describes. With `signsIn`, a 401 opens the sign-in page.
export const readResponse = async (response, signsIn = true) => {
  if (response.ok) {
    markConnected();
    if (response.status === 204) return response.headers.get("X-Output-Kept"); // why a deletion kept the output
    const isJson = response.headers.get("Content-Type")?.includes("json");
    return isJson ? response.json() : response.text();
  }
  const problem = await problemOf(response);
  if (problem === null) {
    const message = `The server cannot be reached (${response.status}).`;
    markLost(message);
    throw new Unreachable(message);
  }
  if (problem.code === "database") markLost(problem.message);
  else markConnected();
  if ([401, 403].includes(problem.status)) cachedSession = null; // another tab may have signed in or out
  if (problem.status === 401 && signsIn) openSignIn();
  throw problem;
};

// Return null where a proxy answered for a server that it cannot reach.
const problemOf = async (response) => {
  if (response.headers.get("Content-Type")?.includes("application/problem+json")) {
    return new Problem(await response.json());
  }
  if ([502, 503, 504].includes(response.status)) return null;
  return new Problem({ status: response.status, title: `The server answered ${response.status}`, code: "unknown" });
};

export const openSignIn = () => {
  const next = location.pathname + location.search;
  location.assign(`/sign-in${query({ next: next === "/" ? "" : next })}`);
};
