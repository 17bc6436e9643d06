// Lazy loading of the chart library (0.9 MB, cached by the browser), which both the plane and the speed chart need.

import { Unreachable } from "../api.js";
import { checkConnection } from "../connection.js";

let loading = null;

export const loadVega = () => {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("../../vega.js", import.meta.url);
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => {
      loading = null;
      script.remove();
      checkConnection();
      reject(new Unreachable("The chart library could not be loaded."));
    });
    document.head.append(script);
  });
  return loading;
};
