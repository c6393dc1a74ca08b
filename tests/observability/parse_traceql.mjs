// Reads a JSON list of queries, and writes the list of their syntax trees: {name, text, error, children}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { parser } = createRequire(`${process.argv[2]}/`)("@grafana/lezer-traceql");

function tree(node, query) {
  const children = [];
  for (let child = node.firstChild; child; child = child.nextSibling) {
    children.push(tree(child, query));
  }
  return { name: node.name, text: query.slice(node.from, node.to), error: node.type.isError, children };
}

const queries = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(queries.map((query) => tree(parser.parse(query).topNode, query))));
