// For each line, a query as a JSON string, writes a line: its syntax tree, {name, text, error, children}.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { parser } = createRequire(`${process.argv[2]}/`)("@grafana/lezer-traceql");

function tree(node, query) {
  const children = [];
  for (let child = node.firstChild; child; child = child.nextSibling) {
    children.push(tree(child, query));
  }
  return { name: node.name, text: query.slice(node.from, node.to), error: node.type.isError, children };
}

for await (const line of createInterface({ input: process.stdin })) {
  const query = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(tree(parser.parse(query).topNode, query))}\n`);
}
