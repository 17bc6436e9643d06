// The chart library, when it is first needed: 0.9 MB, which a browser keeps.

import { Unreachable } from "../api.js";
import { doubt } from "../connection.js";

let loading = null;

export const loadVega = () => {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("../../vega.js", import.meta.url);
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => {
      loading = null;
      script.remove();
      doubt();
      reject(new Unreachable("The chart library could not be loaded."));
    });
    document.head.append(script);
  });
  return loading;
};
