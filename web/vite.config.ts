// Builds the page into one file without any request: script and style stand inside, formulas are MathML already.
import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import temml from "temml";
import { defineConfig, type Plugin } from "vite";

const FORMULAS = resolve(import.meta.dirname, "src/formulas.json");
const OUT = process.env.PAGE_OUT ?? resolve(import.meta.dirname, "../src/polyhead/page/page.html");
const DIGEST = process.env.PAGE_DIGEST ?? "";

/** Gives `virtual:formulas`: each mechanism's formula as MathML, so that no formula library ships. */
function formulas(): Plugin {
  const id = "\0virtual:formulas";
  return {
    name: "formulas",
    resolveId: (source) => (source === "virtual:formulas" ? id : null),
    load(source) {
      if (source !== id) return null;
      const entries: [string, string][] = Object.entries(JSON.parse(readFileSync(FORMULAS, "utf8")));
      const markup = entries.map(([name, latex]) => [
        name,
        temml.renderToString(latex, { displayMode: true, annotate: false, throwOnError: true }),
      ]);
      return `export default ${JSON.stringify(Object.fromEntries(markup))};`;
    },
  };
}

/** Puts the one script and the one style into the page, and writes it where the package keeps it. */
function oneFile(): Plugin {
  return {
    name: "one-file",
    enforce: "post",
    generateBundle(_, bundle) {
      const files = Object.values(bundle);
      const page = files.find((file) => file.fileName.endsWith(".html"));
      if (page?.type !== "asset") throw new Error("the build made no page");
      let html = String(page.source).replace("%DIGEST%", DIGEST);
      for (const file of files) {
        if (file === page) continue;
        const script = file.type === "chunk";
        const text = script ? file.code : String(file.source);
        const tag = script ? "script" : "style";
        const link = script ? /<script[^>]*src="[^"]*"[^>]*><\/script>\s*/ : /<link rel="stylesheet"[^>]*>\s*/;
        html = html.replace(link, "");
        const inside = `<${tag}${script ? ' type="module"' : ""}>${text.replaceAll(`</${tag}`, `<\\/${tag}`).trim()}</${tag}>`;
        html = html.replace(script ? "</body>" : "</head>", () => `${inside}\n${script ? "</body>" : "</head>"}`);
        delete bundle[file.fileName];
      }
      delete bundle[page.fileName];
      writeFileSync(OUT, html);
    },
  };
}

export default defineConfig({
  plugins: [formulas(), svelte(), oneFile()],
  build: {
    target: "es2022",
    cssTarget: ["chrome123", "firefox120", "safari17.5"], // those that know light-dark()
    modulePreload: false,
    assetsInlineLimit: Number.MAX_SAFE_INTEGER,
    cssCodeSplit: false,
    reportCompressedSize: false,
    emptyOutDir: false,
    rolldownOptions: { checks: { pluginTimings: false }, output: { codeSplitting: false } },
  },
});
