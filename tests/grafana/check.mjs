// Checks dashboards against the types that Grafana itself is built from (@grafana/schema): the dashboard, and of every
// panel its options and its field configuration. Unknown keys and wrong values are errors.
//
//     node tests/grafana/check.mjs MODULES DASHBOARD.json…      MODULES: the node_modules that .ci/tools has made
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";

const [modules, ...files] = process.argv.slice(2);
const require = createRequire(join(resolve(modules), "x.js"));
const ts = require("typescript");
const scratch = mkdtempSync(join(tmpdir(), "callsheet-grafana-"));
symlinkSync(resolve(modules), join(scratch, "node_modules"));
const raw = "./node_modules/@grafana/schema/dist/types/raw/composable";
const kinds = ["timeseries", "stat", "heatmap", "table"];

// What is generated from Grafana's CUE files are enums; JSON holds their values.
const head = `
import type { Dashboard as Whole, AnnotationQuery } from "@grafana/schema";
${kinds.map((kind) => `import type * as ${kind} from "${raw}/${kind}/panelcfg/x/types.gen";`).join("\n")}
import type * as common from "@grafana/schema";
type Plain<T> = T extends string ? \`\${T}\` : T extends number | boolean | null | undefined ? T
  : T extends Array<infer U> ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
// The Prometheus data source's own part of an annotation (its annotations.ts), which is not in the package.
type Prometheus = { target?: { refId: string; expr: string; datasource: { type: string; uid: string } };
  titleFormat?: string; textFormat?: string; tagKeys?: string; useValueForTime?: "on" | "off" };
type Annotation = Omit<Plain<AnnotationQuery>, "target"> & Prometheus;
type Board = Omit<Plain<Whole>, "annotations"> & { annotations: { list: Annotation[] } };
`;
// In the table's types of options @grafana/schema lists a version of the panel; in the common ones the field's custom part.
const options = { timeseries: "timeseries.Options", stat: "Partial<stat.Options>", heatmap: "heatmap.Options", table: "table.Options" };
const custom = { timeseries: "timeseries.FieldConfig", stat: "{}", heatmap: "Partial<heatmap.FieldConfig>", table: "Partial<table.FieldConfig>" };

const roots = [];
for (const file of files) {
  const board = JSON.parse(readFileSync(file, "utf8"));
  const parts = [head, `export const board: Board = ${JSON.stringify(board, null, 1)};`];
  for (const panel of board.panels.filter((panel) => panel.type !== "row")) {
    if (!kinds.includes(panel.type)) throw new Error(`${file}: a panel of type ${panel.type} can't be checked`);
    const { id, type } = panel;
    parts.push(`// ${panel.title}\nexport const options${id}: Plain<${options[type]}> = ${JSON.stringify(panel.options, null, 1)};`);
    parts.push(`export const custom${id}: Plain<${custom[type]}> = ${JSON.stringify(panel.fieldConfig.defaults.custom ?? {}, null, 1)};`);
  }
  const root = join(scratch, basename(file, ".json") + ".ts");
  writeFileSync(root, parts.join("\n"));
  roots.push(root);
}
const program = ts.createProgram(roots, {
  noEmit: true, strict: true, skipLibCheck: true, types: [], target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler, preserveSymlinks: true,
});
const found = ts.getPreEmitDiagnostics(program);
console.log(ts.formatDiagnostics(found, { getCurrentDirectory: () => scratch, getCanonicalFileName: (name) => name, getNewLine: () => "\n" }));
rmSync(scratch, { recursive: true });
console.log(`${files.length} dashboards, ${found.length} errors`);
process.exit(found.length === 0 ? 0 : 1);
